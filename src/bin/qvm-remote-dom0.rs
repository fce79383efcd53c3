//! `qvm-remote-dom0`: see [`qrexec_connect::cli::dom0`].

fn main() -> std::process::ExitCode {
    qrexec_connect::cli::dom0::main()
}
