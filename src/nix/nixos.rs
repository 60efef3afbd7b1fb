//! What a NixOS configuration says of the pool. Pure.

use std::path::Path;

use super::machines::BuildMachine;

/// A NixOS module with these machines; `ssh_config` is empty where ssh needs none. `live` is the machines file that there is
/// only while a manager runs.
pub fn module(machines: &[BuildMachine], ssh_config: &str, live: &Path) -> String {
    let list: String = machines.iter().map(entry).collect();
    let ssh = if ssh_config.is_empty() {
        String::new()
    } else {
        format!(
            "  programs.ssh.extraConfig = ''\n{}  '';\n",
            indented(ssh_config)
        )
    };
    format!(
        "# Build machines of xpool, for `imports` of a NixOS configuration. Nix knows them also while no manager runs, and\n\
         # builds then fail; in place of the list,\n\
         #   nix.settings.builders = {};\n\
         # names them only while one does. Who can write that file, or replace a program named here, can do what this Nix can.\n\
         let\n  \
         machine = systems: supportedFeatures: mandatoryFeatures: place: place // {{\n    \
         inherit systems supportedFeatures mandatoryFeatures;\n    \
         protocol = \"ssh-ng\";\n    \
         maxJobs = 1;\n    \
         speedFactor = 1;\n  \
         }};\n\
         in\n\
         {{\n  \
         nix.distributedBuilds = true;\n  \
         nix.buildMachines = [\n{list}  ];\n\
         {ssh}}}\n",
        string(&format!("@/etc/nix/machines;@{}", live.display()))
    )
}

fn entry(machine: &BuildMachine) -> String {
    let user = machine.user.as_deref().map_or(String::new(), |user| {
        format!("sshUser = {}; ", string(user))
    });
    let keys = machine
        .keys
        .as_ref()
        .map_or(String::new(), |(key, host_key)| {
            let key = string(&key.display().to_string());
            format!("sshKey = {key}; publicHostKey = {}; ", string(host_key))
        });
    format!(
        "    (machine {} {} {} {{ hostName = {}; {user}{keys}}})\n",
        list(&machine.abilities.platforms(machine.system)),
        list(&machine.abilities.features()),
        list(&machine.abilities.mandatory()),
        string(&machine.host)
    )
}

/// A list of strings of the Nix language.
fn list(words: &[&str]) -> String {
    let words: String = words.iter().map(|word| string(word) + " ").collect();
    format!("[ {words}]")
}

/// A string of the Nix language.
fn string(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace("${", "\\${");
    format!("\"{escaped}\"")
}

/// The lines of an indented string of the Nix language.
fn indented(text: &str) -> String {
    let escaped = text.replace("''", "'''").replace("${", "''${");
    let line = |line: &str| match line {
        "" => "\n".to_owned(),
        line => format!("    {line}\n"),
    };
    escaped.lines().map(line).collect()
}
