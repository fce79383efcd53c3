use proptest::prelude::*;

use super::*;
use crate::spec::{Name, SocketKind, StartUnit, UnitFlaw, UnitUse};

const A: &str = "[[forward]]\nlabel = \"a\"\nlisten = \"127.0.0.1:1\"\ntarget = \"a:1\"\n";
const B: &str = "[[forward]]\nlabel = \"b\"\nlisten = \"127.0.0.1:2\"\ntarget = \"b:1\"\n";
const C: &str = "[[forward]]\nlabel = \"c\"\nlisten = \"127.0.0.1:3\"\ntarget = \"c:1\"\n";

fn files(main: &str, drop_ins: &[(&str, &str)]) -> Texts {
    let drop_ins =
        drop_ins.iter().map(|(name, text)| Text { name: format!("m.d/{name}"), text: Ok((*text).to_owned()) });
    Texts { drop_ins: drop_ins.collect(), ..Texts::of(Some(("m", main)), [""; 0]) }
}

fn first(texts: &Texts) -> Loaded {
    load(texts, &LastTexts::default(), &Beside::NOTHING, 7)
}

fn then(texts: &Texts, last: &Loaded) -> Loaded {
    load(texts, &last.texts, &Beside::NOTHING, 8)
}

fn served(loaded: &Loaded) -> Vec<String> {
    loaded.config.plan().forwards.iter().map(|f| f.label.as_ref().expect("labelled").to_string()).collect()
}

fn faults(loaded: &Loaded) -> Vec<(String, FaultEffect)> {
    loaded.faults.iter().map(|fault| (fault.fault.place(), fault.effect)).collect()
}

#[test]
fn at_a_first_start_a_fault_inside_a_forward_takes_that_forward_alone() {
    let loaded = first(&files(&format!("{A}{B}mode = 0.5\n{C}"), &[]));
    assert_eq!(served(&loaded), ["a", "c"]);
    assert_eq!(faults(&loaded), [("m:9:8".to_owned(), FaultEffect::ForwardRefused)]);
    assert_eq!(loaded.texts.main.as_ref().map(|main| (main.good, main.since)), Some((false, 7)));
    // Of two forwards that exclude each other, the later one is refused.
    let loaded = first(&files(&format!("{A}{B}{A}"), &[]));
    assert_eq!(served(&loaded), ["a", "b"]);
    assert_eq!(loaded.faults.len(), 2, "its label and its address: {:?}", loaded.faults);
    assert!(loaded.faults[0].to_string().contains("m:10:9: the label \"a\""), "{}", loaded.faults[0]);
    assert!(loaded.faults[0].to_string().ends_with("(the other is m:2): this forward is not served"));
}

#[test]
fn at_a_first_start_a_fault_outside_of_forwards_takes_the_whole_file_alone() {
    for fault in ["[defaults]\nmode = 7.5\n", "x = = 1\n", "[[forwards]]\n", "[defaults]\nlisten = \"a\"\n"] {
        let loaded = first(&files(&format!("{A}{fault}"), &[("b.toml", B)]));
        assert_eq!(served(&loaded), ["b"], "{fault}");
        assert!(
            loaded.faults.iter().all(|fault| fault.effect == FaultEffect::FileRefused),
            "{fault}: {:?}",
            loaded.faults
        );
    }
}

#[test]
fn a_faulty_drop_in_serves_nothing_and_the_others_take_effect() {
    let faulty = [
        format!("{B}taget = 1\n"),
        format!("{B}[[forward]]\nuds = \"/a\"\n"),
        format!("{B}[defaults]\nmode = 384\n"),
        format!("{B}{B}"),
        format!("{B}= 1\n"),
    ];
    for text in faulty {
        let loaded = first(&files(A, &[("b.toml", &text), ("c.toml", C)]));
        assert_eq!(served(&loaded), ["a", "c"], "{text}");
        assert!(!loaded.faults.is_empty());
        let refused = |fault: &ConfigFault| {
            fault.effect == FaultEffect::DropInRefused && fault.fault.place().starts_with("m.d/b.toml:")
        };
        assert!(loaded.faults.iter().all(refused), "{text}: {:?}", loaded.faults);
        // With a good text before, that one stays; with the good one back, nothing is wrong.
        let good = files(A, &[("b.toml", B), ("c.toml", "")]);
        let kept = then(&files(A, &[("b.toml", &text), ("c.toml", C)]), &first(&good));
        assert_eq!(served(&kept), ["a", "b", "c"], "{text}");
        assert!(
            kept.faults
                .iter()
                .all(|fault| fault.effect == FaultEffect::Kept && fault.at_start == FaultEffect::DropInRefused)
        );
        assert_eq!(then(&good, &kept).faults, []);
    }
}

#[test]
fn defaults_of_the_main_file_hold_for_drop_ins() {
    let loaded = first(&files("[defaults]\nmax_connections = 3\n", &[("b.toml", B)]));
    assert_eq!(loaded.config.plan().forwards[0].options.max_connections, 3);
}

#[test]
fn what_two_files_claim_goes_at_a_first_start_to_the_first_in_byte_order() {
    let loaded = first(&files(A, &[("B.toml", B), ("a.toml", &format!("{A}{C}")), ("b.toml", B)]));
    assert_eq!(served(&loaded), ["a", "b", "c"]);
    assert!(loaded.faults.iter().all(|fault| fault.effect == FaultEffect::ForwardRefused), "{:?}", loaded.faults);
    let text = loaded.faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("m.d/a.toml:2:9: the label \"a\" is given to two forwards (the other is m:2)"), "{text}");
    assert!(
        text.contains("m.d/b.toml:2:9: the label \"b\" is given to two forwards (the other is m.d/B.toml:2)"),
        "{text}"
    );
}

#[test]
fn a_reload_leaves_what_two_files_claim_to_the_one_that_served_it() {
    let address_of_b = C.replace("127.0.0.1:3", "127.0.0.1:2");
    for claims in [B.to_owned(), C.replace("\"c\"", "\"b\""), address_of_b] {
        let [a, more] = [A.to_owned(), format!("{A}{claims}")];
        // The file that changed keeps its last text, be it the earlier one or the later one.
        let good = first(&files(&a, &[("b.toml", B)]));
        let kept = then(&files(&more, &[("b.toml", B)]), &good);
        assert_eq!((served(&kept), &kept.texts), (vec!["a".to_owned(), "b".to_owned()], &good.texts), "{claims}");
        let effects = |fault: &ConfigFault| (fault.effect, fault.at_start, fault.at_reload);
        let expected = (FaultEffect::Kept, FaultEffect::ForwardRefused, FaultEffect::Kept);
        assert!(!kept.faults.is_empty() && kept.faults.iter().all(|fault| effects(fault) == expected), "{kept:?}");
        let good = first(&files(B, &[("a.toml", &a)]));
        let kept = then(&files(B, &[("a.toml", &more)]), &good);
        assert_eq!((served(&kept), &kept.texts), (vec!["b".to_owned(), "a".to_owned()], &good.texts), "{claims}");
        // The other file may have changed otherwise.
        let other = format!("{B}{}", C.replace("\"c\"", "\"d\"").replace(":3", ":4"));
        let kept = then(&files(&more, &[("b.toml", &other)]), &first(&files(&a, &[("b.toml", B)])));
        assert_eq!(served(&kept), ["a", "b", "d"], "{claims}");
    }
    // Neither had it: the later one gives way. A file that is new has no other text.
    let [more_a, more_b] = [format!("{A}{C}"), format!("{B}{C}")];
    let kept = then(&files(&more_a, &[("b.toml", &more_b)]), &first(&files(A, &[("b.toml", B)])));
    assert_eq!(served(&kept), ["a", "c", "b"]);
    let new = then(&files(A, &[("b.toml", &format!("{A}{B}"))]), &first(&files(A, &[])));
    assert_eq!(
        (served(&new), new.faults[0].effect),
        (vec!["a".to_owned(), "b".to_owned()], FaultEffect::ForwardRefused)
    );
}

#[test]
fn a_file_with_a_fault_keeps_its_last_good_text() {
    let good = first(&files(&format!("{A}{B}"), &[]));
    for faulty in ["x = ", "[[forward]]\nlisten = 1\n", "[defaults]\nmode = 7.5\n", "[other]\n"] {
        let kept = then(&files(faulty, &[]), &good);
        assert_eq!(served(&kept), ["a", "b"], "{faulty}");
        assert_eq!(kept.texts, good.texts, "the same text, of the same time");
        assert!(kept.faults.iter().all(|fault| fault.effect == FaultEffect::Kept), "{:?}", kept.faults);
        let restarted = then(&files(faulty, &[]), &kept);
        assert_eq!((served(&restarted), restarted.faults), (served(&kept), kept.faults), "{faulty}");
    }
    let unreadable =
        Texts { main: Some(Text { name: "m".to_owned(), text: Err("no".to_owned()) }), ..Texts::default() };
    let kept = then(&unreadable, &good);
    assert_eq!((served(&kept).len(), faults(&kept)), (2, vec![("m".to_owned(), FaultEffect::Kept)]));
    assert_eq!(kept.faults[0].to_string(), "m: cannot be read: no: the last good text of the file stays in force");
    // Of another file there is no last good text; and one that is faulty for this version counts as absent.
    let other = Texts::of(Some(("n", "x =")), [""; 0]);
    assert_eq!(served(&then(&other, &good)), [""; 0]);
    let mut older = good;
    older.texts.main.as_mut().expect("one").text = "[[forward]]\nold = 1\n".to_owned();
    assert_eq!(served(&then(&files(&format!("{A}x = 1\n{B}"), &[]), &older)), ["b"]);
}

#[test]
fn without_a_good_text_the_one_in_force_goes_only_for_one_that_takes_nothing_away() {
    let bad = "[[forward]]\nlabel = \"x\"\n";
    let partly = first(&files(&format!("{A}{B}{bad}"), &[]));
    assert_eq!(served(&partly), ["a", "b"]);
    assert_eq!(served(&then(&files("x =", &[]), &partly)), ["a", "b"]);
    assert_eq!(served(&then(&files(&format!("{A}{bad}"), &[]), &partly)), ["a", "b"]);
    assert_eq!(served(&then(&files(&format!("{A}{B}{bad}{C}"), &[]), &partly)), ["a", "b", "c"]);
    assert_eq!(served(&then(&files(A, &[]), &partly)), ["a"], "a good one says what it says");
}

#[test]
fn the_label_of_a_socket_that_is_served_does_not_go_by_a_typo() {
    let text = "[[forward]]\nlabel = \"ssh\"\ntarget = \"a:22\"\n";
    let sockets = [("ssh".to_owned(), SocketKind::Tcp)];
    let beside = Beside { sockets: &sockets, ..Beside::NOTHING };
    for (good, typo) in [
        (files(text, &[]), files(&text.replace("ssh", "shh"), &[])),
        (files(A, &[("s.toml", text)]), files(A, &[("s.toml", &text.replace("ssh", "shh"))])),
        (files(A, &[("s.toml", text), ("t.toml", B)]), files(A, &[("t.toml", B)])),
        (files(text, &[]), Texts::default()),
    ] {
        let good = load(&good, &LastTexts::default(), &beside, 7);
        assert_eq!(good.faults, []);
        let kept = load(&typo, &good.texts, &beside, 8);
        let resolves = |loaded: &Loaded| fdname::resolve("ssh", SocketKind::Tcp, &loaded.config).is_ok();
        assert!(resolves(&kept) && kept.texts == good.texts, "{kept:?}");
        assert_eq!(kept.faults.len(), 1);
        assert!(kept.faults[0].to_string().contains("put it back, or stop the socket first"), "{}", kept.faults[0]);
        // Without the socket, nobody needs it; and at a first start nobody had it.
        assert_eq!(load(&typo, &good.texts, &Beside::NOTHING, 8).faults, []);
        let loaded = load(&typo, &LastTexts::default(), &beside, 8);
        assert!(!resolves(&loaded) && loaded.faults.is_empty());
    }
}

#[test]
fn defaults_that_make_a_drop_in_file_faulty_do_not_come_into_force() {
    let drop_in = [("b.toml", "[[forward]]\nlabel = \"b\"\nuds = \"b.sock\"\ntarget = \"b:1\"\n")];
    let good = first(&files("[defaults]\nuds_dir = \"/run/x\"\n", &drop_in));
    assert_eq!((served(&good), good.faults.len()), (vec!["b".to_owned()], 0));
    let kept = then(&files(A, &drop_in), &good);
    assert_eq!((served(&kept), &kept.texts), (vec!["b".to_owned()], &good.texts));
    assert_eq!(faults(&kept), [("m.d/b.toml:3:7".to_owned(), FaultEffect::Kept)]);
    // A drop-in file that is new has its faults by itself.
    let kept = then(&files(A, &drop_in), &first(&files("[defaults]\nuds_dir = \"/run/x\"\n", &[])));
    assert_eq!(served(&kept), ["a"]);
}

#[test]
fn whom_faulty_defaults_keep_out_no_other_file_lets_in() {
    let loaded = first(&files("[defaults]\nallow_from = \"x\"\n", &[("b.toml", B)]));
    assert_eq!((served(&loaded).len(), faults(&loaded).len()), (0, 1), "{:?}", loaded.faults);
}

#[test]
fn places_never_mix() {
    let text = "[[forward]]\nlabel = \"ssh\"\ntarget = \"a:22\"\n";
    let sockets = [("ssh".to_owned(), SocketKind::Tcp)];
    let beside = Beside { sockets: &sockets, ..Beside::NOTHING };
    let here = load(&files("", &[("s.toml", text)]), &LastTexts::default(), &beside, 7);
    let there = load(&Texts::of(Some(("/etc/m", A)), [""; 0]), &here.texts, &beside, 8);
    assert_eq!((served(&there), there.texts.drop_ins), (vec!["a".to_owned()], Vec::new()));
}

#[test]
fn a_socket_whose_name_needs_no_configuration_is_served_beside_a_faulty_one() {
    let resolves = |name: &str, main: &str| fdname::resolve(name, SocketKind::Tcp, &first(&files(main, &[])).config);
    for main in ["x =", "[defaults]\nmode = 7.5\n", "[other]\n"] {
        assert!(resolves("target=a+1", main).is_ok(), "{main}");
        assert!(resolves("work qubes.ConnectTCP+1", main).is_ok(), "{main}");
        // A label is refused with the fault of the file, which may have had it.
        let why = resolves("ssh", main).expect_err("no such label").to_string();
        assert!(why.starts_with("m:"), "{why}");
    }
    // What keeps peers out is not left out.
    for main in [
        "[defaults]\nallow_from = \"x\"\n",
        "[defaults]\nallow_from = 10.0.0.0\n",
        "defaults = { allow_uid = }\n",
        "[defaults]\nallow_uid = [\n",
    ] {
        assert!(resolves("target=a+1", main).is_err(), "{main}");
    }
    let held = "[defaults]\nallow_from = \"10.0.0.0/8\"\nmode = 7.5\n";
    assert_eq!(resolves("target=a+1", held).unwrap().legs.front().admit.from.len(), 1);
}

#[test]
fn a_directory_that_cannot_be_read_keeps_all_its_files() {
    let good = first(&files(A, &[("b.toml", B), ("c.toml", C)]));
    let directory = Text { name: "m.d".to_owned(), text: Err("no".to_owned()) };
    let kept = then(&Texts { drop_ins: vec![directory], ..files(A, &[]) }, &good);
    assert_eq!((served(&kept).join(""), kept.texts), ("abc".to_owned(), good.texts));
    assert_eq!(kept.faults.len(), 1);
}

#[test]
fn a_fault_of_an_argument_takes_the_forward_that_it_is_about() {
    let texts = Texts { forwards: vec!["label=a,max_connections=x".to_owned()], ..files(&format!("{A}{B}"), &[]) };
    let loaded = first(&texts);
    assert_eq!(served(&loaded), ["b"]);
    assert_eq!(faults(&loaded), [("--forward #1".to_owned(), FaultEffect::ForwardRefused)]);
    assert!(loaded.texts.main.expect("one").good, "the file is");
}

#[test]
fn a_list_with_a_user_who_does_not_exist_is_a_fault_of_its_forward_or_of_the_defaults_alone() {
    let unix = "[[forward]]\nlabel = \"u\"\nuds = \"/u\"\ntarget = \"u:1\"\n";
    let load = |text: &str, last: &LastTexts| {
        let machine = Machine { users: |name| name != "gone", ..Machine::WILLING };
        load_knowing(&files(text, &[]), last, &Beside::NOTHING, 7, machine)
    };
    let own = format!("{unix}allow_uid = [\"root\", \"gone\"]\n{A}");
    let loaded = load(&own, &LastTexts::default());
    assert_eq!((served(&loaded), faults(&loaded).len()), (vec!["a".to_owned()], 1));
    assert!(loaded.faults[0].to_string().contains("m:5:14: allow_uid: there is no user gone"), "{}", loaded.faults[0]);
    // What the defaults say of users concerns no listener with addresses.
    let loaded = load(&format!("[defaults]\nallow_uid = \"gone\"\n{unix}{A}"), &LastTexts::default());
    assert_eq!(served(&loaded), ["a"]);
    let good = load(&format!("{unix}{A}"), &LastTexts::default());
    assert_eq!(served(&load(&own, &good.texts)), ["u", "a"]);
}

#[test]
fn a_forward_with_a_unit_that_cannot_be_used_is_refused_and_all_units_are_asked_about_once() {
    let asked = std::cell::RefCell::new(Vec::new());
    let units = |uses: &[UnitUse<'_>]| {
        asked.borrow_mut().push(uses.iter().map(|one| (one.unit.to_string(), one.stops)).collect::<Vec<_>>());
        let flaw = |unit: &StartUnit| UnitFlaw { what: format!("{unit} is masked"), hint: "unmask it".to_owned() };
        uses.iter().map(|one| (one.unit.as_str() == "gone.service").then(|| flaw(one.unit))).collect()
    };
    let machine = Machine { units: &units, ..Machine::WILLING };
    let load =
        |text: &str, beside: &Beside<'_>, last: &LastTexts| load_knowing(&files(text, &[]), last, beside, 7, machine);
    let unit = |name: &str| format!("start_unit = \"{name}\"\n");
    let stops = "stop_when_idle = 60\n";
    let faulty = format!("{A}{}{B}{}{stops}", unit("gone"), unit("there"));
    let loaded = load(&faulty, &Beside::NOTHING, &LastTexts::default());
    assert_eq!((served(&loaded), loaded.faults.len()), (vec!["b".to_owned()], 1));
    let told = loaded.faults[0].to_string();
    assert!(told.contains("start_unit: gone.service is masked") && told.contains("unmask it"), "{told}");
    let both = [("gone.service".to_owned(), false), ("there.service".to_owned(), true)];
    assert_eq!(asked.take(), [both]);
    // Without such a unit nobody is asked.
    load(&format!("{A}{B}"), &Beside::NOTHING, &LastTexts::default());
    assert_eq!(asked.take().len(), 0);
    // The last good text stays in force; behind a socket the forward is refused, too.
    let good = load(&format!("{A}{B}"), &Beside::NOTHING, &LastTexts::default());
    assert_eq!(served(&load(&faulty, &Beside::NOTHING, &good.texts)), ["a", "b"]);
    let sockets = [("n".to_owned(), SocketKind::Tcp)];
    let text = format!("[defaults]\n{stops}[[forward]]\nlabel = \"n\"\ntarget = \"127.0.0.1:1\"\n{}", unit("gone"));
    asked.take();
    let loaded = load(&text, &Beside { sockets: &sockets, ..Beside::NOTHING }, &LastTexts::default());
    assert_eq!(asked.take(), [[("gone.service".to_owned(), true)]]);
    assert!(fdname::resolve("n", SocketKind::Tcp, &loaded.config).is_err());
}

#[test]
fn every_name_resolves_to_the_same_by_the_plan_and_by_a_socket() {
    let loaded = first(&files(&format!("{A}{B}taget = 1\n"), &[]));
    let name: Name = fdname::parse("b").unwrap();
    let why = name.resolve(SocketKind::Tcp, &loaded.config).expect_err("refused").to_string();
    assert!(why.starts_with("m:9:1: unknown key"), "{why}");
}

#[test]
fn a_forward_into_a_namespace_behind_a_socket_is_refused_where_none_may_be_entered() {
    let text = "[[forward]]\nlabel = \"n\"\ntarget = \"127.0.0.1:1\"\nnamespace = \"blue\"\n";
    let passed = [("n".to_owned(), SocketKind::Tcp)];
    for sockets in [&passed[..], &[]] {
        let beside = Beside { sockets, no_namespaces: Some("may not enter") };
        let loaded = load(&files(&format!("{text}{A}"), &[]), &LastTexts::default(), &beside, 7);
        assert_eq!((served(&loaded), loaded.faults.len()), (vec!["a".to_owned()], 1), "{:?}", loaded.faults);
        assert!(loaded.faults[0].to_string().contains("m:1:1: may not enter"), "{}", loaded.faults[0]);
    }
}

/// A file of some forwards, often with a fault.
fn file() -> impl Strategy<Value = String> {
    let forward = (0..4usize, 0..6usize).prop_map(|(n, port)| {
        let label = ["a", "b", "c", "d"][n];
        format!("[[forward]]\nlabel = \"{label}\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"{label}:1\"\n")
    });
    let part = prop_oneof![
        8 => forward,
        1 => Just("taget = 1\n".to_owned()),
        1 => Just("[other]\n".to_owned()),
        1 => Just("= 1\n".to_owned()),
        1 => Just("[[forward]]\nuds = \"/a\"\n".to_owned()),
        1 => Just("[[forward]]\nlabel = \"e\"\nallow_from = \"x\"\ntarget = \"e:1\"\n".to_owned()),
    ];
    proptest::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

fn some_files() -> impl Strategy<Value = Texts> {
    (file(), proptest::collection::vec(file(), 0..3)).prop_map(|(main, more)| {
        let names = ["a.toml", "b.toml", "c.toml"];
        let more: Vec<(&str, &str)> = names.into_iter().zip(more.iter().map(String::as_str)).collect();
        files(&main, &more)
    })
}

proptest! {
    #[test]
    fn what_is_in_force_is_so_again_after_a_restart(before in some_files(), now in some_files()) {
        let sockets = [("a".to_owned(), SocketKind::Tcp), ("e".to_owned(), SocketKind::Unix)];
        let beside = Beside { sockets: &sockets, ..Beside::NOTHING };
        let before = load(&before, &LastTexts::default(), &beside, 7);
        let reloaded = load(&now, &before.texts, &beside, 8);
        let restarted = load(&now, &reloaded.texts, &beside, 9);
        prop_assert_eq!(reloaded.config.plan(), restarted.config.plan());
        prop_assert_eq!(reloaded.faults, restarted.faults);
        prop_assert_eq!(reloaded.texts, restarted.texts);
    }

    #[test]
    fn what_a_faulty_file_served_it_goes_on_to_serve(before in file(), now in file()) {
        let (before, now) = (files(&before, &[]), files(&now, &[]));
        let (first_of_now, was) = (first(&now), first(&before));
        let kept = then(&now, &was);
        if first_of_now.faults.is_empty() {
            prop_assert_eq!(served(&kept), served(&first_of_now));
            prop_assert!(kept.faults.is_empty());
        } else {
            let now = served(&kept);
            prop_assert!(served(&was).iter().all(|forward| now.contains(forward)), "{:?} {:?}", served(&was), now);
            prop_assert!(!kept.faults.is_empty());
        }
    }

    #[test]
    fn a_fault_of_one_file_takes_nothing_from_another(good in file(), other in file()) {
        prop_assume!(first(&files(&good, &[])).faults.is_empty());
        let loaded = first(&files(&good, &[("x.toml", &other)]));
        prop_assert!(served(&loaded).starts_with(&served(&first(&files(&good, &[])))));
        let loaded = first(&files("", &[("x.toml", &good), ("y.toml", &other)]));
        prop_assert!(served(&loaded).starts_with(&served(&first(&files("", &[("x.toml", &good)])))));
    }
}
