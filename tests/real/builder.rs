//! What builds get from a guest, with a real Nix client: what breaks real packages where it is not as on other builders. `scripts/test`
//! makes the images and runs it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::common::Installation;
use crate::common::nix::{Nix, derivation, started, stderr, tooled};
use serde_json::Value;

const SYSTEM: &str = "riscv64-linux";

/// A program `sort` that does something else.
fn other_sort(installation: &Installation) {
    let bin = installation.path().join("other/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("sort"), "#!/bin/sh\necho MARK\n").unwrap();
    fs::set_permissions(bin.join("sort"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn programs_in_path_files_in_etc_and_times_of_files_are_as_on_other_builders() {
    let (installation, _serving) = started(
        "[pool]\nmax-vms = 1\nreuse = \"always\"\n[systems.riscv64-linux]\ndisk-gib = 40\n",
    );
    let nix = Nix::new(&installation);
    other_sort(&installation);
    let own = r#"PATH = "${./other}/bin";"#;
    let script = "echo x | sort > $out";
    assert_eq!(
        nix.results(&derivation(SYSTEM, "own-sort", own, script)),
        ["MARK\n"]
    );

    let fixed = |text: &str| {
        format!(
            r#"outputHash = builtins.hashString "sha256" "{text}\n"; outputHashAlgo = "sha256"; outputHashMode = "flat";"#
        )
    };
    let script = r#"while read -r name port _; do
            [ "$name $port" != "https 443/tcp" ] || echo $name $port > $out
        done < /etc/services"#;
    let services = derivation(SYSTEM, "services", &fixed("https 443/tcp"), script);
    assert_eq!(nix.results(&services), ["https 443/tcp\n"]);

    let script = "echo x > file; touch -a -d 2001-01-01 file; cat file > /dev/null
        [ $(stat -c %X file) != 978307200 ] && echo read > $out";
    assert_eq!(
        nix.results(&tooled(SYSTEM, "read-times", "", script)),
        ["read\n"]
    );

    // Of a program, since a shell ignores some itself.
    let script = "grep SigIgn: /proc/self/status > $out";
    let ignored = nix.results(&tooled(SYSTEM, "signals", "", script));
    assert_eq!(ignored, ["SigIgn:\t0000000000000000\n"]);

    let script = "ulimit -n 10000 && unshare -Ur id -u > $out";
    assert_eq!(
        nix.results(&tooled(SYSTEM, "namespaces", "", script)),
        ["0\n"]
    );

    // As it was configured, less what the file system itself takes; and a sparse file larger than the image's own disk.
    let script = "{ df -Pk /build; df -Pi /build; } | awk 'NR % 2 == 0 { print $2 }' > $out
        truncate -s 30G sparse && printf end | dd of=sparse bs=1 seek=32000000000 conv=notrunc
        dd if=sparse bs=1 skip=32000000000 count=3 >> $out";
    let sizes = nix.results(&tooled(SYSTEM, "sizes", "", script)).remove(0);
    let lines: Vec<&str> = sizes.lines().collect();
    let [kib, inodes, "end"] = lines[..] else {
        panic!("{sizes}")
    };
    let gib = kib.parse::<f64>().unwrap() / f64::from(1 << 20);
    assert!((38.0..=40.0).contains(&gib), "{sizes}");
    assert!(inodes.parse::<u64>().unwrap() > 2_000_000, "{sizes}");
}

/// The builds that an installation has had, as its status tells them.
fn outcomes(installation: &Installation) -> Vec<Value> {
    let status = installation.status();
    let builds = status["builds"].as_array().unwrap().iter();
    builds.map(|build| build["outcome"].clone()).collect()
}

/// Has a build fail for want of memory, and looks at what is said of it.
fn uses_up_the_memory(nix: &Nix<'_>, name: &str, script: &str) {
    let mut build = nix.build(&tooled(SYSTEM, name, "", script));
    let output = build.output().unwrap();
    let log = stderr(&output);
    let logs = nix.installation.logs();
    assert!(!output.status.success(), "{log}\n{logs}");
    for told in [
        "xpool: riscv64-1 ran out of memory and its kernel killed `",
        "; it has 512 MiB: raise `memory-mib` in xpool.toml",
    ] {
        assert!(log.contains(told), "{name}: {log}\n{logs}");
    }
    let outcome = outcomes(nix.installation).pop().unwrap();
    let because = outcome["because"].as_str().unwrap();
    assert!(because.starts_with("out of memory: `"), "{because}");
}

#[test]
fn a_build_that_uses_up_the_memory_ends_alone_and_is_told_why() {
    let config = "[pool]\nmax-vms = 1\nreuse = \"always\"\nslots-per-vm = 2\nmemory-mib = 512\n";
    let (installation, _serving) = started(config);
    let nix = Nix::new(&installation);
    // It starts programs all the time, and ends when it is told to.
    let script = "echo the build runs; until [ -e told ]; do sleep 0.2; done; echo well > $out";
    let neighbour = tooled(SYSTEM, "neighbour", "", script);
    let mut neighbour = nix.start(&neighbour);
    installation.until("the neighbour runs", || {
        neighbour.log().contains("the build runs")
    });
    let one = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    uses_up_the_memory(&nix, "one", one);
    let tell =
        "for dir in /tmp/nix-build-neighbour.drv-*; do touch $dir/told $dir/build/told; done; true";
    installation.ok(&["ssh", "riscv64-1", "--", tell]);
    let ended = neighbour.child.wait().unwrap();
    assert!(ended.success(), "{}", neighbour.log());
    // Of a hundred small ones the largest may be Nix's own, and the machine goes on all the same.
    let many = "x=aaaaaaaaaaaaaaaa; n=0; while [ $n -lt 19 ]; do x=$x$x; n=$((n + 1)); done
        n=0; while [ $n -lt 100 ]; do n=$((n + 1)); { x=$x; sleep 5; } & done; wait; false";
    uses_up_the_memory(&nix, "many", many);
    let after = derivation(SYSTEM, "after", "", "echo well > $out");
    assert_eq!(nix.results(&after), ["well\n"]);
    let listed = installation.ok(&["status"]);
    assert!(listed.contains("out of memory"), "{listed}");
    assert!(listed.contains("riscv64-1 "), "{listed}");
}

/// What a build is told of a text in the store and of a derivation that refers to it: as JSON, and in the files that it had before.
fn told_of_inputs(share: &str) -> (Value, String) {
    let config = format!(
        "[pool]\nmax-vms = 1\nstore.share = \"{share}\"\n[store]\nroot = \"[DIR]/client\"\n"
    );
    let (installation, _serving) = started(&config);
    let nix = Nix::new(&installation);
    let expression = format!(
        r#"let tools = ./tools/{SYSTEM}; text = builtins.toFile "text" "x"; made = {};
        in derivation {{ name = "graph"; system = "{SYSTEM}"; __structuredAttrs = true; builder = "/bin/sh";
            exportReferencesGraph.graph = [ text tools made ]; outputs = [ "out" ];
            args = [ "-c" ''
                out=$(${{tools}}/bin/sed -n 's/.*"outputs":{{"out":"\([^"]*\).*/\1/p' $NIX_ATTRS_JSON_FILE)
                ${{tools}}/bin/cat $NIX_ATTRS_JSON_FILE > $out
            '' ]; }}"#,
        derivation(SYSTEM, "made", "inherit text;", "echo $text > $out")
    );
    let told = nix.results(&expression).remove(0);
    let told: Value = serde_json::from_str(&told).unwrap();
    let text = r#"builtins.toFile "text" "x""#;
    let made = format!("text = {text};");
    let made = derivation(SYSTEM, "made", &made, "echo $text > $out");
    let graphs = format!(r#"exportReferencesGraph = [ "text" ({text}) "made" ({made}) ];"#);
    let script = "cat text made > $out";
    let plain = nix.results(&tooled(SYSTEM, "plain", &graphs, script));
    (told["graph"].clone(), plain.concat())
}

#[test]
fn a_build_is_told_the_same_of_inputs_that_are_shared_and_of_inputs_that_are_sent() {
    let told = told_of_inputs("host");
    assert_eq!(told, told_of_inputs("none"));
    let (shared, files) = told;
    // A path, its deriver, which is not told, and how many paths it refers to; then those.
    let lines: Vec<&str> = files.lines().collect();
    let [text, "", "0", made @ ..] = &lines[..] else {
        panic!("{files}");
    };
    assert_eq!(made.len(), 7, "{files}");
    assert_eq!(
        made.iter().filter(|line| *line == text).count(),
        2,
        "{files}"
    );
    let paths = shared.as_array().unwrap();
    assert_eq!(paths.len(), 3, "{shared}");
    let addresses = paths.iter().filter_map(|path| path["ca"].as_str());
    assert_eq!(addresses.count(), 2, "{shared}");
}

/// A command of Nix's that fails: its exit code, and what it says.
fn failed(nix: &Nix<'_>, expression: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = nix.build(expression).args(args).output().unwrap();
    (output.status.code(), stderr(&output))
}

#[test]
fn what_test_suites_look_for_in_a_sandbox_is_there() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\nvcpus = 2\nreuse = \"always\"\n");
    let nix = Nix::new(&installation);
    // An address of IPv6's loopback; shared memory for everybody, of half of the memory; folders as Nix makes them; and as many jobs as
    // there are processors, which is what 0 stands for.
    let script = r"{
        grep -c ' lo$' /proc/net/if_inet6
        stat -c %a /dev/shm; echo x > /dev/shm/x
        memory=$(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo)
        shared=$(df -Pk /dev/shm | awk 'NR == 2 { print int($2 / 1024) }')
        [ $((shared * 2 - memory)) -ge -2 ] && [ $((shared * 2 - memory)) -le 2 ] && echo half
        stat -c %a /build /tmp /nix/store | tr '\n' ' '; echo
        echo $NIX_BUILD_CORES $(grep -c ^processor /proc/cpuinfo)
    } > $out";
    let seen = nix.results(&tooled(SYSTEM, "seen", "", script)).remove(0);
    assert_eq!(seen, "1\n1777\nhalf\n700 1777 1775 \n0 2\n");
    // What is too long for one word of a program's environment is so as it is natively, and has a way around.
    let long = |length: u32| {
        format!(
            r#"long = builtins.concatStringsSep "" (builtins.genList (n: "xxxxxxxxxx") {length});"#
        )
    };
    let script = "cat $longPath | wc -c > $out";
    let by_file = format!("{} passAsFile = [ \"long\" ];", long(200_000));
    assert_eq!(
        nix.results(&tooled(SYSTEM, "file", &by_file, script)),
        ["2000000\n"]
    );
    let (exit, said) = failed(
        &nix,
        &derivation(SYSTEM, "long", &long(14_000), "echo > $out"),
        &[],
    );
    assert_ne!(exit, Some(0), "{said}");
    assert!(said.contains("rgument list too long"), "{said}");
    // Another hash than the one that was asked for: both are told. (The exit code is the client's; 2.8 has 1 for all builds elsewhere.)
    let fixed = r#"outputHash = builtins.hashString "sha256" "one"; outputHashAlgo = "sha256"; outputHashMode = "flat";"#;
    let (exit, said) = failed(
        &nix,
        &derivation(SYSTEM, "fixed", fixed, "echo two > $out"),
        &[],
    );
    assert_ne!(exit, Some(0), "{said}");
    assert!(
        said.contains("specified:") && said.contains("got:"),
        "{said}"
    );
    // A hook of the client's runs once for what was built elsewhere. (2.8 does not tell it the paths.)
    let hook = installation.path().join("hook");
    let ran = installation.path().join("ran");
    fs::write(
        &hook,
        format!("#!/bin/sh\necho $OUT_PATHS >> {}\n", ran.display()),
    )
    .unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let hooked = derivation(SYSTEM, "hooked", "", "echo > $out");
    let output = nix
        .build(&hooked)
        .args(["--option", "post-build-hook"])
        .arg(&hook)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&ran).unwrap().lines().count(), 1);
}

#[test]
fn the_vm_of_a_failed_build_can_be_looked_at() {
    let (installation, _serving) = started("[pool]\nmax-vms = 1\nkeep-failed = \"10m\"\n");
    let nix = Nix::new(&installation);
    let script = "echo left > file; false";
    let (exit, log) = failed(&nix, &derivation(SYSTEM, "fails", "", script), &[]);
    assert_ne!(exit, Some(0));
    let told = "if this build fails, its VM is kept for 10m: `xpool ssh riscv64-1`";
    assert!(log.contains(told), "{log}");
    let look = "cat /tmp/nix-build-fails.drv-*/build/file || cat /tmp/nix-build-fails.drv-*/file";
    assert_eq!(installation.ok(&["ssh", "riscv64-1", "--", look]), "left\n");
    installation.ok(&["drain", "riscv64-1"]);
    installation.until("it is gone", || installation.qemus().is_empty());
    let works = derivation(SYSTEM, "works", "", "echo well > $out");
    assert_eq!(nix.results(&works), ["well\n"]);
}
