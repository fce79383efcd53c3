//! Rules that are read without a fault and allow less than they may seem to: of policies that were written before these
//! rules were made stricter, and of mistakes.

use super::{
    fault::{Complaint, PolicyFault},
    rules::{Policy, RuleSubject, Verdict},
};

/// The remarks about a policy, in the order of its lines. `trouble` says what is wrong with a program that a rule names
/// by a path without wildcards, or by a bare name; `behind` gives the file where that is a link.
pub fn remarks(
    policy: &Policy,
    trouble: impl Fn(&[u8]) -> Option<String>,
    behind: impl Fn(&[u8]) -> Option<String>,
) -> Vec<PolicyFault> {
    let mut found = Vec::new();
    for rule in &policy.rules {
        let mut remark = |what: String, fix: String| found.push(Complaint::new(what, fix).at(rule.line));
        let program = match &rule.subject {
            RuleSubject::Argv { program, .. } => Some(program),
            RuleSubject::Shell(_) => None,
            RuleSubject::Get(_) | RuleSubject::Put(_) => continue, // they have neither program nor input
        };
        if let Some(program) = program.filter(|program| rule.verdict == Verdict::Allow && program.narrower()) {
            let what = "\"*\" and \"?\" of a program match no \"/\", so programs in directories below are not allowed";
            remark(what.into(), format!("to allow them: {}", program.widened()));
        }
        if let Some(trouble) = program.filter(|_| rule.verdict != Verdict::Deny).and_then(|p| trouble(p.only_name()?)) {
            remark(trouble, "correct the name, or the owner and the mode; until then the program does not run".into());
        }
        if let Some(file) = program.filter(|_| rule.verdict == Verdict::Deny).and_then(|p| behind(p.only_name()?)) {
            let what = format!("the program is a link to {file}, so the rule denies that file under every name");
            remark(what, "write allow rules for its other names before this rule, to allow those".into());
        }
        match rule.verdict {
            Verdict::Ask if !rule.options.stdin && !rule.stdin_stated => {
                let what = "a command that is approved takes no later input: qvm-remote -i and --tty are refused";
                remark(what.into(), "write [stdin=yes] to allow it, or [stdin=no]".into());
            }
            Verdict::Allow if !rule.options.stdin && rule.options.tty => {
                let what = "what is typed at a terminal is input, so stdin=no refuses qvm-remote --tty";
                remark(what.into(), "tty=no beside it, or no stdin=no".into());
            }
            _ => {}
        }
    }
    found
}
