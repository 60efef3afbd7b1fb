//! Walking over a message of known shape without holding it: only lengths are read, bytes are skipped.
//!
//! A shape is static data. The state is a few words whatever the message's size, so that a NAR of gigabytes passes at the
//! price of one comparison per chunk.

use super::wire::padding;

/// One part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A 64-bit number.
    Number,
    /// A number that is wanted.
    WantedNumber,
    /// A length, bytes, padding.
    String,
    /// A string whose bytes are wanted; at most [`MAX_WANTED`] of them are kept.
    Wanted,
    /// A count, and that many times the parts.
    List(&'static [Item]),
    /// 0, or 1 and the parts.
    Optional(&'static [Item]),
    /// 0, or 1 and a number; wanted, with whether it is there.
    WantedOptional,
    /// Frames of unpadded bytes, each after its length, until a length of zero (`FramedSink` of Nix).
    Frames,
    /// A field of an activity: 0 and a number, or 1 and a string.
    Field,
    /// A field whose bytes are wanted if it is a string.
    WantedField,
}

/// The longest prefix of a wanted string that is kept, in bytes. A derivation's path has at most 250.
pub const MAX_WANTED: usize = 512;

/// How many wanted strings a message may have: many more than a derivation has outputs.
const MAX_WANTED_STRINGS: usize = 256;

/// How many wanted numbers a message may have.
const MAX_WANTED_NUMBERS: usize = 8;

/// No string, frame or list is longer than this. What claims to be is not what we think it is. In bytes or items.
const MAX_LENGTH: u64 = 1 << 40;

/// How deep lists are nested in the shapes that there are, with one level for the message itself.
const MAX_DEPTH: usize = 4;

/// The bytes do not have the shape that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unexpected;

/// Where a walk through one message is.
#[derive(Debug)]
pub struct Walk {
    /// The shapes that are being walked, the innermost last.
    levels: [Level; MAX_DEPTH],
    n_levels: usize,
    /// What the bytes at this place are.
    place: Place,
    /// The bytes of a number that has not arrived in full.
    word: [u8; 8],
    n_word: usize,
    last_number: u64,
    /// Those after the first `n_wanted` are an earlier walk's, kept for their memory.
    wanted: Vec<Vec<u8>>,
    n_wanted: usize,
    wanted_numbers: [Option<u64>; MAX_WANTED_NUMBERS],
    n_wanted_numbers: usize,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    items: &'static [Item],
    next: usize,
    /// How often `items` is still to be walked, this time included.
    repeats: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the boundary in front of the next item.
    Next,
    /// In a number that belongs to this item.
    Word(Item),
    /// In bytes that nobody wants; `frames` says that another frame's length follows.
    Skip { left: u64, frames: bool },
    /// In the bytes of a wanted string, then in its padding.
    Keep { left: u64, padding: u64 },
}

impl Level {
    fn new(items: &'static [Item], repeats: u64) -> Self {
        Self {
            items,
            next: 0,
            repeats,
        }
    }
}

impl Walk {
    /// Starts in front of a message.
    pub fn new(items: &'static [Item]) -> Self {
        Self {
            levels: [Level::new(items, 1); MAX_DEPTH],
            n_levels: 1,
            place: Place::Next,
            word: [0; 8],
            n_word: 0,
            last_number: 0,
            wanted: Vec::new(),
            n_wanted: 0,
            wanted_numbers: [None; MAX_WANTED_NUMBERS],
            n_wanted_numbers: 0,
        }
    }

    /// Starts again in front of another message, with the memory of this one: frames come by the million.
    pub fn restart(&mut self, items: &'static [Item]) {
        self.levels[0] = Level::new(items, 1);
        self.n_levels = 1;
        self.place = Place::Next;
        self.n_word = 0;
        self.n_wanted = 0;
        self.n_wanted_numbers = 0;
    }

    /// The number that was walked over last.
    pub fn last_number(&self) -> u64 {
        self.last_number
    }

    /// The wanted strings that were walked over, in order.
    pub fn wanted(&self) -> &[Vec<u8>] {
        &self.wanted[..self.n_wanted]
    }

    /// The wanted numbers that were walked over, in order; `None` for an optional one that is not there.
    pub fn wanted_numbers(&self) -> &[Option<u64>] {
        &self.wanted_numbers[..self.n_wanted_numbers]
    }

    /// Walks on, and takes what belongs to the message from the front of `bytes`. True at its end.
    pub fn advance(&mut self, bytes: &mut &[u8]) -> Result<bool, Unexpected> {
        loop {
            match self.place {
                Place::Next => match self.next_item() {
                    Some(item) => self.place = Place::Word(item),
                    None => return Ok(true),
                },
                Place::Word(item) => match self.take_word(bytes) {
                    Some(number) => self.enter(item, number)?,
                    None => return Ok(false),
                },
                Place::Skip {
                    left: 0,
                    frames: true,
                } => self.place = Place::Word(Item::Frames),
                Place::Skip {
                    left: 0,
                    frames: false,
                } => self.place = Place::Next,
                Place::Keep { left: 0, padding } => {
                    self.place = Place::Skip {
                        left: padding,
                        frames: false,
                    };
                }
                _ if bytes.is_empty() => return Ok(false),
                Place::Skip { left, frames } => {
                    let left = left - take(bytes, left).len() as u64;
                    self.place = Place::Skip { left, frames };
                }
                Place::Keep { left, padding } => {
                    let taken = take(bytes, left);
                    if let Some(wanted) = self.wanted[..self.n_wanted].last_mut() {
                        let room = MAX_WANTED - wanted.len();
                        wanted.extend_from_slice(&taken[..taken.len().min(room)]);
                    }
                    let left = left - taken.len() as u64;
                    self.place = Place::Keep { left, padding };
                }
            }
        }
    }

    /// The item whose turn it is; lists that are through are left.
    fn next_item(&mut self) -> Option<Item> {
        loop {
            let level = self.levels[..self.n_levels].last_mut()?;
            if let Some(item) = level.items.get(level.next) {
                level.next += 1;
                return Some(*item);
            }
            level.next = 0;
            level.repeats -= 1;
            if level.repeats == 0 {
                self.n_levels -= 1;
            }
        }
    }

    /// Goes on after the number that every item begins with.
    fn enter(&mut self, item: Item, number: u64) -> Result<(), Unexpected> {
        if number > MAX_LENGTH && !matches!(item, Item::Number | Item::WantedNumber) {
            return Err(Unexpected);
        }
        self.place = match item {
            Item::Number => Place::Next,
            Item::WantedNumber => self.want_number(Some(number))?,
            Item::WantedOptional => match number {
                0 => self.want_number(None)?,
                1 => Place::Word(Item::WantedNumber),
                _ => return Err(Unexpected),
            },
            Item::String => Place::Skip {
                left: number + padding_of(number),
                frames: false,
            },
            Item::Wanted => {
                self.want_string()?;
                Place::Keep {
                    left: number,
                    padding: padding_of(number),
                }
            }
            Item::Frames if number == 0 => Place::Next,
            Item::Frames => Place::Skip {
                left: number,
                frames: true,
            },
            Item::Field | Item::WantedField => match number {
                0 => Place::Word(Item::Number),
                1 if item == Item::WantedField => Place::Word(Item::Wanted),
                1 => Place::Word(Item::String),
                _ => return Err(Unexpected),
            },
            Item::Optional(_) if number > 1 => return Err(Unexpected),
            Item::List(items) | Item::Optional(items) => {
                if number > 0 {
                    let level = self.levels.get_mut(self.n_levels).ok_or(Unexpected)?;
                    *level = Level::new(items, number);
                    self.n_levels += 1;
                }
                Place::Next
            }
        };
        Ok(())
    }

    /// Makes room for a wanted string.
    fn want_string(&mut self) -> Result<(), Unexpected> {
        match self.wanted.get_mut(self.n_wanted) {
            Some(earlier) => earlier.clear(),
            None if self.n_wanted == MAX_WANTED_STRINGS => return Err(Unexpected),
            None => self.wanted.push(Vec::new()),
        }
        self.n_wanted += 1;
        Ok(())
    }

    /// Keeps a wanted number.
    fn want_number(&mut self, number: Option<u64>) -> Result<Place, Unexpected> {
        let place = self.wanted_numbers.get_mut(self.n_wanted_numbers);
        *place.ok_or(Unexpected)? = number;
        self.n_wanted_numbers += 1;
        Ok(Place::Next)
    }

    /// A whole number, or `None` when its end has not arrived.
    fn take_word(&mut self, bytes: &mut &[u8]) -> Option<u64> {
        let missing = self.word.len() - self.n_word;
        let taken = take(bytes, missing as u64);
        self.word[self.n_word..][..taken.len()].copy_from_slice(taken);
        self.n_word += taken.len();
        if self.n_word < self.word.len() {
            return None;
        }
        self.n_word = 0;
        self.last_number = u64::from_le_bytes(self.word);
        Some(self.last_number)
    }
}

/// Splits at most `max` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], max: u64) -> &'a [u8] {
    let n = usize::try_from(max).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn padding_of(len: u64) -> u64 {
    padding((len % 8) as usize) as u64
}

#[cfg(test)]
mod tests;
