//! `pfwd`: see [`qrexec_connect::cli::pfwd`].

fn main() -> std::process::ExitCode {
    qrexec_connect::cli::pfwd::main()
}
