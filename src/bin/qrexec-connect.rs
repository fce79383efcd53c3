//! `qrexec-connect`: see [`qrexec_connect::cli::connect`].

fn main() -> std::process::ExitCode {
    qrexec_connect::cli::connect::main()
}
