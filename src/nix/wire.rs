//! How Nix's worker protocol writes numbers and strings, and reading them from bytes that may not all be there yet.
//!
//! Source: `worker-protocol.hh` and `serialise.cc` of Nix 2.3 to 2.34. Numbers are 64 bits, little endian. A string is its
//! length and its bytes, padded with zeroes to a multiple of 8. A list is its count and its items.

use std::fmt;

/// A version of the worker protocol: `1.37`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Peers with different majors cannot talk.
    pub major: u8,
    /// Peers use the smaller of their minors.
    pub minor: u8,
}

impl Version {
    /// The version of Nix 2.20 to 2.22, which every later Nix and Lix accepts, and the last one without a feature exchange.
    pub const PROMISED: Self = Self::new(1, 37);

    /// The version of Nix 2.3, the oldest client that is still met. Every guest that xpool has takes it.
    pub const OLDEST: Self = Self::new(1, 21);

    /// A version from its two parts.
    pub const fn new(major: u8, minor: u8) -> Self {
        Self { major, minor }
    }

    /// As it is written on the wire: the major in the second byte, the minor in the first.
    pub const fn to_wire(self) -> u64 {
        (self.major as u64) << 8 | self.minor as u64
    }

    /// From the wire. `None` if the number is too large to be a version.
    pub fn from_wire(number: u64) -> Option<Self> {
        let [minor, major, rest @ ..] = number.to_le_bytes();
        (rest == [0; 6]).then_some(Self { major, minor })
    }

    /// Whether a peer of this version knows what came with `1.minor`.
    pub fn has(self, minor: u8) -> bool {
        self >= Self::new(1, minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

/// Appends a string with its length and padding.
pub fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend(std::iter::repeat_n(0, padding(bytes.len())));
}

/// Appends a list of strings.
pub fn put_strings<S: AsRef<[u8]>>(out: &mut Vec<u8>, strings: &[S]) {
    put_number(out, strings.len() as u64);
    for string in strings {
        put_string(out, string.as_ref());
    }
}

/// How many zeroes follow a string of `len` bytes.
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 8
}

/// Why a value could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Its end is not there yet: read more, then try again from the start of the message.
    #[error("the message is not complete")]
    Incomplete,
    /// A string or list is longer than anything that can be meant here.
    #[error("a length of {len} where at most {limit} is allowed")]
    TooLong {
        /// What the wire says.
        len: u64,
        /// What is allowed, in bytes or items.
        limit: usize,
    },
    /// The padding of a string holds something.
    #[error("a string is not padded with zeroes")]
    BadPadding,
}

/// Reads values from the front of a buffer without changing it, so that an incomplete message can be tried again.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Reads a number.
    pub fn number(&mut self) -> Result<u64, WireError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let word = rest.first_chunk::<8>().ok_or(WireError::Incomplete)?;
        self.position += 8;
        Ok(u64::from_le_bytes(*word))
    }

    /// Reads a string of at most `limit` bytes.
    pub fn string(&mut self, limit: usize) -> Result<&'a [u8], WireError> {
        let len = self.length(limit)?;
        let start = self.position;
        let (end, padded) = start
            .checked_add(len)
            .and_then(|end| Some((end, end.checked_add(padding(len))?)))
            .ok_or(WireError::TooLong {
                len: len as u64,
                limit,
            })?;
        let string = self.bytes.get(start..end);
        let zeroes = self.bytes.get(end..padded);
        let (string, zeroes) = string.zip(zeroes).ok_or(WireError::Incomplete)?;
        if zeroes.iter().any(|byte| *byte != 0) {
            return Err(WireError::BadPadding);
        }
        self.position = padded;
        Ok(string)
    }

    /// Reads a list of at most `max_items` strings of at most `limit` bytes each.
    pub fn strings(&mut self, max_items: usize, limit: usize) -> Result<Vec<&'a [u8]>, WireError> {
        let count = self.length(max_items)?;
        (0..count).map(|_| self.string(limit)).collect()
    }

    fn length(&mut self, limit: usize) -> Result<usize, WireError> {
        let len = self.number()?;
        usize::try_from(len)
            .ok()
            .filter(|len| *len <= limit)
            .ok_or(WireError::TooLong { len, limit })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_look_on_the_wire_as_nix_writes_them() {
        assert_eq!(Version::PROMISED.to_wire(), 0x125);
        assert_eq!(Version::from_wire(0x126), Some(Version::new(1, 38)));
        assert_eq!(Version::from_wire(0x1_0000), None);
        assert!(Version::new(1, 9) < Version::new(1, 10));
        assert!(Version::new(2, 0).has(38));
    }

    #[test]
    fn a_string_is_its_length_its_bytes_and_zeroes() {
        let mut out = Vec::new();
        put_string(&mut out, b"nix");
        assert_eq!(out, b"\x03\0\0\0\0\0\0\0nix\0\0\0\0\0");
    }

    #[test]
    fn a_string_that_is_too_long_is_refused_before_its_bytes_are_there() {
        let mut out = Vec::new();
        put_number(&mut out, u64::MAX);
        let expected = WireError::TooLong {
            len: u64::MAX,
            limit: 100,
        };
        assert_eq!(Reader::new(&out).string(100), Err(expected));
    }

    #[test]
    fn a_count_takes_no_memory_before_its_items_are_there() {
        let mut out = Vec::new();
        put_number(&mut out, u64::MAX >> 4);
        let most = usize::MAX;
        assert_eq!(
            Reader::new(&out).strings(most, most),
            Err(WireError::Incomplete)
        );
    }

    #[test]
    fn padding_that_holds_something_is_refused() {
        let bytes = b"\x03\0\0\0\0\0\0\0nix\0\0\0\0\x01";
        assert_eq!(Reader::new(bytes).string(100), Err(WireError::BadPadding));
    }

    proptest! {
        #[test]
        fn a_version_is_read_as_it_was_written(major: u8, minor: u8) {
            let version = Version::new(major, minor);
            prop_assert_eq!(Version::from_wire(version.to_wire()), Some(version));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..100),
            limit: usize,
        ) {
            let mut reader = Reader::new(&bytes);
            while reader.string(limit).is_ok() {}
            prop_assert!(reader.position() <= bytes.len());
            let _ = Reader::new(&bytes).strings(limit, limit);
        }

        #[test]
        fn what_was_written_is_read_and_every_prefix_is_incomplete(
            number: u64,
            strings in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
        ) {
            let mut out = Vec::new();
            put_number(&mut out, number);
            put_strings(&mut out, &strings);
            let read = |bytes| {
                let mut reader = Reader::new(bytes);
                let values = (reader.number()?, reader.strings(6, 40)?);
                Ok::<_, WireError>((values, reader.position()))
            };
            let ((got_number, got_strings), end) = read(&out).unwrap();
            prop_assert_eq!(got_number, number);
            prop_assert_eq!(got_strings, strings);
            prop_assert_eq!(end, out.len());
            for cut in 0..out.len() {
                prop_assert_eq!(read(&out[..cut]), Err(WireError::Incomplete));
            }
        }
    }
}
