//! `qvm-remote`: see [`qrexec_connect::cli::remote`].

fn main() -> std::process::ExitCode {
    qrexec_connect::cli::remote::main()
}
