//! What `systemd-analyze security` says of each unit is what packaging/hardening.md says.

use crate::{
    support::skip,
    tree::{As, shell},
};

/// The rows of the table: manager, unit, figure for systemd 252, for 257.
fn table() -> Vec<[&'static str; 4]> {
    let text = include_str!("../../packaging/hardening.md");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        cells.try_into().ok().filter(|cells: &[&str; 4]| cells[1].ends_with(".service"))
    });
    rows.collect()
}

#[test]
fn each_unit_is_as_closed_as_the_table_says() {
    let Some(tree) = tree!() else { return };
    tree.boot("look", As::Root, || {
        let version = shell("systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p'");
        let column = match version.as_str() {
            "252" => 2,
            "257" => 3,
            _ => return skip(&format!("the table says nothing of systemd {version}")),
        };
        let said: Vec<String> = table()
            .iter()
            .map(|row| {
                let [manager, unit, ..] = row;
                let flag = if *manager == "user" { "--user" } else { "" };
                let figure = shell(&format!(
                    "XDG_RUNTIME_DIR=/run systemd-analyze {flag} security --offline=yes --no-pager \
                     /usr/lib/systemd/{manager}/{unit} | sed -n 's/.*Overall exposure level for .*: \\([0-9.]*\\) .*/\\1/p'"
                ));
                format!("{manager} {unit} {figure}")
            })
            .collect();
        let written: Vec<String> = table().iter().map(|row| format!("{} {} {}", row[0], row[1], row[column])).collect();
        assert_eq!(said.join("\n"), written.join("\n"), "packaging/hardening.md, systemd {version}");
        let units = shell("cd /usr/lib/systemd; ls system/{qrexec-connect,pfwd,qvm-remote,qvm-forward}*.service user/qrexec-*.service");
        assert_eq!(units.lines().count(), written.len(), "each unit is in the table");
    });
}
