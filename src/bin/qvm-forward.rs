//! `qvm-forward`: see [`qrexec_connect::cli::lan`].

fn main() -> std::process::ExitCode {
    qrexec_connect::cli::lan::main()
}
