//! Each program compiles what it uses and nothing else: `Cargo.toml`'s features, as cargo itself reads them.
//! (That each feature uses all that it asks for is asked of the compiler by `tests/features`.)

use std::{collections::BTreeSet, process::Command};

use crate::support::run;

/// The crates that the library has with these features: those it names, or all that they bring with them.
fn crates(features: &str, depth: &str) -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--locked", "--edges=normal", "--prefix=none", "--no-default-features"]);
    cargo.args(["--features", features, "--depth", depth, "--format={lib}"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = run(cargo);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|l| !l.is_empty() && *l != "qrexec_connect").map(str::to_owned).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn in_dom0_and_in_a_client_nothing_is_compiled_that_only_the_forwarder_needs() {
    let secrets = ["bytes", "getrandom", "hmac", "libc", "nix", "serde_json", "sha2", "subtle", "tokio", "zeroize"];
    let daemon = [
        "clap",
        "sd_notify",
        "seccompiler",
        "tokio_util",
        "tracing",
        "tracing_journald",
        "tracing_subscriber",
        "unicode_width",
    ];
    assert_eq!(crates("remote", "1"), set(&secrets));
    assert_eq!(crates("dom0", "1"), set(&[&secrets[..], &daemon].concat()));
    let forwarder = ["annotate_snippets", "listenfd", "ppp", "tempfile", "toml", "uuid"];
    let all = crates("forward", "1");
    for features in ["remote", "dom0"] {
        let whole = crates(features, "99");
        assert!(whole.contains("cfg_if"), "{whole:?}"); // which only others bring
        for name in forwarder {
            assert!(all.contains(name) && !whole.contains(name), "{features} compiles {name}");
        }
    }
}
