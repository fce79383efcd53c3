use super::*;
use crate::spec::value::Keepalive;
use crate::spec::{
    Config, forward,
    options::Options,
    plan::{Legs, Listen},
};

fn own(text: &str) -> Result<Forward, Faults> {
    mean(&forward(text).unwrap(), ListenSide::Own, &Config::default().defaults)
}

fn inherited(kind: SocketKind, text: &str) -> Result<Forward, Faults> {
    mean(&forward(text).unwrap(), ListenSide::Inherited(kind), &Config::default().defaults)
}

#[test]
fn every_row_of_the_table_of_roles_means_its_legs() {
    for (text, shown) in [
        ("listen=0.0.0.0:2222,uds=/run/a.sock", "tcp 0.0.0.0:2222 -> unix /run/a.sock"),
        ("uds=/run/a.sock,target=10.0.0.5:22", "unix /run/a.sock -> tcp 10.0.0.5:22"),
        ("uds=/run/a.sock,target=10.0.0.5:22,namespace=x", "unix /run/a.sock -> tcp 10.0.0.5:22 in x"),
        ("uds=@a,target=10.0.0.5:22,setns_path=/proc/7/ns/net", "unix @a -> tcp 10.0.0.5:22 in /proc/7/ns/net"),
        (
            "listen=[::]:2222,uds=/run/a.sock,target=10.0.0.5:22,namespace=x",
            "tcp [::]:2222 -> unix /run/a.sock -> tcp 10.0.0.5:22 in x",
        ),
        ("listen=127.0.0.1:2222,target=10.0.0.5:22", "tcp 127.0.0.1:2222 -> tcp 10.0.0.5:22"),
        (
            "listen=127.0.0.1:2222,listen_namespace=y,target=10.0.0.5:22,namespace=x",
            "tcp 127.0.0.1:2222 in y -> tcp 10.0.0.5:22 in x",
        ),
        ("udp_listen=0.0.0.0:53,udp_target=10.0.0.5:53", "udp 0.0.0.0:53 -> udp 10.0.0.5:53"),
        (
            "label=d,udp_listen=0.0.0.0:53,udp_target=10.0.0.5:53,namespace=x",
            "d: udp 0.0.0.0:53 -> udp 10.0.0.5:53 in x",
        ),
        ("listen=127.0.0.1:22,qrexec=work svc+1", "tcp 127.0.0.1:22 -> qrexec work svc+1"),
        ("uds=/run/a.sock,qrexec=work svc", "unix /run/a.sock -> qrexec work svc"),
        ("listen=127.0.0.1:1-9,target=10.0.0.5:11-19", "tcp 127.0.0.1:1-9 -> tcp 10.0.0.5:11-19"),
        ("label=w,listen=[::1]:1-9,target=a:5", "w: tcp [::1]:1-9 -> tcp a:5"),
        (
            "udp_listen=0.0.0.0:1-9,listen_namespace=y,udp_target=[::1]:1-9,namespace=x",
            "udp 0.0.0.0:1-9 in y -> udp [::1]:1-9 in x",
        ),
        ("listen=127.0.0.1:1-9,qrexec=work svc", "tcp 127.0.0.1:1-9 -> qrexec work svc"),
    ] {
        assert_eq!(own(text).expect(text).to_string(), shown);
    }
    for (kind, text, shown) in [
        (SocketKind::Tcp, "uds=/run/a.sock", "inherited socket -> unix /run/a.sock"),
        (SocketKind::Unix, "uds=/run/a.sock", "inherited socket -> unix /run/a.sock"),
        (SocketKind::Tcp, "target=a:22", "inherited socket -> tcp a:22"),
        (SocketKind::Unix, "namespace=x,target=10.0.0.5:22", "inherited socket -> tcp 10.0.0.5:22 in x"),
        (
            SocketKind::Tcp,
            "uds=/r,target=10.0.0.5:22,namespace=x",
            "inherited socket -> unix /r -> tcp 10.0.0.5:22 in x",
        ),
        (SocketKind::Udp, "target=a:53", "inherited socket -> udp a:53"),
        (SocketKind::Udp, "udp_target=10.0.0.5:53,namespace=x", "inherited socket -> udp 10.0.0.5:53 in x"),
        (SocketKind::Tcp, "qrexec=work svc,allow_from=10.0.0.0/8", "inherited socket -> qrexec work svc"),
    ] {
        assert_eq!(inherited(kind, text).expect(text).to_string(), shown);
    }
}

#[test]
fn what_cannot_mean_anything_is_refused_with_what_is_missing() {
    for (text, whats) in [
        ("listen=127.0.0.1:1", &["nothing says where connections go"][..]),
        ("uds=/run/a.sock", &["uds alone has no client and no target"]),
        ("target=a:1", &["nothing says where connections come in"]),
        ("label=x", &["the forward has no listening side and no target"]),
        ("udp_listen=127.0.0.1:1", &["nothing says where datagrams go"]),
        ("udp_target=a:1", &["nothing says where datagrams come in"]),
        ("listen=127.0.0.1:1,namespace=x", &["namespace needs a target"]),
        ("udp_listen=127.0.0.1:1,namespace=x", &["namespace needs a udp_target"]),
        ("uds=/a,setns_path=/x", &["setns_path needs a target"]),
        ("uds=/a,target=10.0.0.5:1,namespace=x,setns_path=/x", &["both name the namespace"]),
        ("uds=/a,target=a:1,qrexec=work svc", &["both say where connections go"]),
        ("uds=/a,qrexec=work svc,namespace=x", &["no namespace sees"]),
        ("listen=127.0.0.1:1,udp_target=a:1", &["takes datagrams"]),
        ("udp_listen=127.0.0.1:1,target=a:1", &["goes with udp_target"]),
        ("udp_listen=127.0.0.1:1,udp_target=a:1,uds=/a", &["do not go through a UNIX socket"]),
        ("udp_listen=127.0.0.1:1,udp_target=a:1,listen=127.0.0.1:1", &["listen accepts streams"]),
        ("udp_listen=127.0.0.1:1,udp_target=a:1,qrexec=work svc", &["carries streams"]),
        ("uds=/a,target=10.0.0.5:1,listen_namespace=x", &["listen_namespace needs listen"]),
        ("listen=127.0.0.1:1,uds=a.sock", &["relative path a.sock"]),
        (
            "listen=127.0.0.1:1,target=1.1.1.1:1,source=::1,mode=0600,allow_uid=0,setup_timeout=1,udp_idle_timeout=1,udp_responses=1,max_calls=1",
            &[
                "mode does",
                "udp_idle_timeout does",
                "udp_responses does",
                "setup_timeout does",
                "max_calls does",
                "allow_uid does",
                "different families",
            ],
        ),
        ("uds=/a,target=1.1.1.1:1,allow_from=::/0", &["allow_from does nothing"]),
        ("uds=@a,target=1.1.1.1:1,mode=0600,dir_mode=0700", &["mode does", "dir_mode does"]),
        (
            "uds=/a,listen=127.0.0.1:1,owner=root,source=::1",
            &["owner does nothing here: the forward connects to this UNIX socket", "source does"],
        ),
        (
            "udp_listen=127.0.0.1:1,udp_target=a:1,backlog=1,idle_timeout=1,keepalive=on,proxy_protocol=v1,buffer_size=4K",
            &["backlog does", "idle_timeout does", "keepalive does", "proxy_protocol does", "buffer_size does"],
        ),
        ("listen=127.0.0.1:1-3,target=1.1.1.1:1-2", &["target has 2 ports, and listen has 3"]),
        ("listen=127.0.0.1:1,target=1.1.1.1:1-2", &["target has 2 ports, and listen has 1"]),
        ("udp_listen=127.0.0.1:1-3,udp_target=1.1.1.1:1-2", &["udp_target has 2 ports, and udp_listen has 3"]),
        ("uds=/a,target=1.1.1.1:1-2", &["target has 2 ports, and there is one listening socket"]),
        ("listen=127.0.0.1:1-2,uds=/a", &["cannot go through a UNIX socket"]),
        ("listen=127.0.0.1:1-2,uds=/a,target=1.1.1.1:1-2", &["cannot go through a UNIX socket"]),
        ("listen=127.0.0.1:1-2,target=1.1.1.1:1-2,source=::1", &["different families"]),
        (
            "listen=127.0.0.1:1,qrexec=work svc,connect_timeout=1,retry_timeout=1,bind_device=lo",
            &["connect_timeout does", "retry_timeout does", "bind_device does"],
        ),
        ("listen=127.0.0.1:1,qrexec=work svc,start_unit=a", &["start_unit does nothing here: a qrexec call"]),
        ("listen=127.0.0.1:1,uds=/a,qrexec=work svc,start_unit=a,stop_when_idle=9", &["start_unit does nothing here"]),
        ("listen=127.0.0.1:1,target=a:1,stop_when_idle=9", &["stop_when_idle does nothing here: it stops a unit"]),
        (
            "listen=127.0.0.1:1,target=a:1,start_unit=a,retry_timeout=0",
            &["retry_timeout is 0, and a client has to wait for the start"],
        ),
        ("udp_listen=127.0.0.1:1,udp_target=a:1,retry_timeout=9", &["retry_timeout does nothing here"]),
    ] {
        let faults = own(text).expect_err(text);
        assert_eq!(faults.0.len(), whats.len(), "{text}: {faults}");
        for (fault, what) in faults.0.iter().zip(whats) {
            assert!(fault.what().contains(what), "{text}: {fault}");
        }
    }
}

#[test]
fn beside_an_inherited_socket_nothing_else_is_the_listening_side() {
    let text = "listen=127.0.0.1:1,udp_listen=127.0.0.1:1,listen_namespace=x,mode=0600,owner=root,backlog=9,uds=/a";
    let faults = inherited(SocketKind::Tcp, text).unwrap_err();
    assert_eq!(faults.0.len(), 6, "{faults}");
    assert!(faults.0.iter().all(|fault| fault.what().contains("beside an inherited socket")), "{faults}");
    let refused = |kind, text: &str| inherited(kind, text).unwrap_err().to_string();
    assert!(refused(SocketKind::Tcp, "target=a:1-2").contains("target has 2 ports, and there is one listening socket"));
    assert!(refused(SocketKind::Udp, "target=a:1-2").contains("there is one listening socket"));
    assert!(refused(SocketKind::Udp, "udp_target=a:1-2").contains("there is one listening socket"));
    assert!(refused(SocketKind::Tcp, "udp_target=a:1").contains("TCP stream socket"));
    assert!(refused(SocketKind::Unix, "udp_target=a:1").contains("UNIX stream socket"));
    assert!(refused(SocketKind::Udp, "uds=/a").contains("do not go through a UNIX socket"));
    assert!(refused(SocketKind::Udp, "qrexec=work svc").contains("carries streams"));
    assert!(refused(SocketKind::Unix, "target=a:1,allow_from=::1").contains("peers of a UNIX socket have no address"));
}

#[test]
fn a_range_has_a_leg_for_each_port_with_the_options_of_all() {
    let shown = |text: &str| -> Vec<String> { own(text).unwrap().legs.iter().map(ToString::to_string).collect() };
    assert_eq!(
        shown("listen=127.0.0.1:8-10,target=10.0.0.5:1-3"),
        [
            "tcp 127.0.0.1:8 -> tcp 10.0.0.5:1",
            "tcp 127.0.0.1:9 -> tcp 10.0.0.5:2",
            "tcp 127.0.0.1:10 -> tcp 10.0.0.5:3"
        ]
    );
    assert_eq!(
        shown("udp_listen=[::1]:8-9,udp_target=[::1]:1,namespace=x"),
        ["udp [::1]:8 -> udp [::1]:1 in x", "udp [::1]:9 -> udp [::1]:1 in x"]
    );
    let text =
        "listen=0.0.0.0:1-1024,target=10.0.0.5:22,allow_from=10.0.0.0/8,source=10.0.0.1,proxy_protocol=v2,backlog=7";
    let legs = own(text).unwrap().legs;
    assert_eq!((legs.iter().count(), legs.fronts().count(), legs.kinds().count()), (1024, 1024, 1));
    for leg in legs.iter() {
        assert_eq!((leg.admit.from.len(), leg.via.source.is_some(), leg.via.proxy_protocol.is_some()), (1, true, true));
        assert!(matches!(leg.listen, Listen::Tcp { backlog, .. } if backlog.get() == 7));
    }
    let listens = legs.iter().map(|leg| &leg.listen);
    let all = own("udp_listen=0.0.0.0:9,udp_target=a:9").unwrap().legs;
    let some: Vec<&Listen> =
        listens.filter(|listen| listen.port() != Some(80)).chain(all.iter().map(|leg| &leg.listen)).collect();
    assert_eq!(Listen::places(some), ["tcp 0.0.0.0:1-79", "tcp 0.0.0.0:81-1024", "udp 0.0.0.0:9"]);
}

#[test]
fn each_option_reaches_the_leg_that_it_concerns() {
    let text = "listen=0.0.0.0:1,uds=/a,target=10.0.0.5:22,allow_from=10.0.0.0/8,allow_uid=adm,source=10.0.0.1,\
                bind_device=eth0,proxy_protocol=v2,mode=0660,owner=root:adm,dir_mode=0700,backlog=7";
    let Legs::Two { front, back } = own(text).unwrap().legs else { panic!("a pipeline has two legs") };
    assert_eq!((front.admit.from.len(), front.admit.uids.len()), (1, 0));
    assert_eq!((back.admit.from.len(), back.admit.uids.len()), (0, 1));
    assert!(front.via.proxy_protocol.is_some() && front.via.source.is_none() && front.via.device.is_none());
    assert!(back.via.proxy_protocol.is_some() && back.via.source.is_some() && back.via.device.is_some());
    assert!(matches!(front.listen, Listen::Tcp { backlog, .. } if backlog.get() == 7));
    let Listen::Unix { rights, .. } = back.listen else { panic!("the back leg serves the UNIX socket") };
    assert_eq!((rights.mode.bits(), rights.dir_mode.bits()), (0o660, 0o700));
    assert_eq!(rights.owner.unwrap().to_string(), "root:adm");
}

#[test]
fn defaults_concern_whom_they_may() {
    let text = "[defaults]\nmode = 416\nallow_uid = [\"adm\"]\nallow_from = \"10.0.0.0/8\"\nsource = \"::1\"\nidle_timeout = 60\n\
                udp_idle_timeout = 5\nproxy_protocol = \"v1\"\nmax_setups = 2\nmax_calls = 6\nbacklog = 3\n";
    let defaults = Config::gather(Some(("x", text)), [""; 0]).unwrap().0.defaults;
    let mean = |text: &str| mean(&forward(text).unwrap(), ListenSide::Own, &defaults).unwrap();
    let tcp = mean("listen=127.0.0.1:1,target=10.0.0.1:1,idle_timeout=0");
    let leg = tcp.legs.front();
    assert_eq!((leg.admit.from.len(), leg.admit.uids.len(), leg.via.source), (1, 0, None));
    assert_eq!(tcp.options.idle_timeout, None);
    let udp = mean("udp_listen=127.0.0.1:1,udp_target=[::1]:1");
    assert!(udp.legs.front().via.source.is_some() && udp.legs.front().via.proxy_protocol.is_none());
    assert_eq!(udp.options.udp_idle_timeout.as_secs(), 5);
    let unix = mean("uds=/a,target=a:1");
    assert!(matches!(&unix.legs.front().listen, Listen::Unix { rights, backlog, .. }
        if rights.mode.bits() == 0o640 && backlog.get() == 3));
    assert_eq!((unix.options.max_setups, unix.legs.front().admit.uids.len()), (2, 1));
    let max_calls = |text: &str| mean(text).options.max_calls;
    assert_eq!(max_calls("listen=127.0.0.1:1,qrexec=work svc"), Some(6));
    assert_eq!(max_calls("listen=127.0.0.1:1,qrexec=work svc,max_calls=7"), Some(7));
    // one header, from whoever dials the target
    assert!(unix.legs.front().via.proxy_protocol.is_some());
    assert!(mean("listen=127.0.0.1:1,uds=/a").legs.front().via.proxy_protocol.is_none());
    assert!(mean("listen=127.0.0.1:1,uds=/a,proxy_protocol=v2").legs.front().via.proxy_protocol.is_some());
}

#[test]
fn without_options_the_documented_defaults_hold() {
    let options = own("uds=/a,target=a:1").unwrap().options;
    assert_eq!(options, Options::default());
    assert_eq!((options.max_connections, options.max_setups), (1024, 4));
    let times = [options.connect_timeout, options.setup_timeout, options.drain_timeout, options.udp_idle_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [10, 300, 5, 600]);
    assert!(options.keepalive == Keepalive::On && options.idle_timeout.is_none());
}

#[test]
fn a_unit_is_started_for_streams_and_datagrams_and_waited_for() {
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs());
    for text in [
        "listen=127.0.0.1:1,target=a:1,start_unit=ai,stop_when_idle=600",
        "listen=127.0.0.1:1,uds=/a,start_unit=ai,stop_when_idle=600",
        "listen=127.0.0.1:1,uds=/a,target=a:1,start_unit=ai,stop_when_idle=600",
        "udp_listen=127.0.0.1:1,udp_target=a:1,start_unit=ai,stop_when_idle=10min",
        "listen=127.0.0.1:1-9,target=a:1-9,start_unit=ai.service,stop_when_idle=600",
    ] {
        let options = own(text).expect(text).options;
        assert_eq!(options.start_unit.as_ref().map(|unit| unit.as_str()), Some("ai.service"), "{text}");
        assert_eq!(seconds(options.stop_when_idle), Some(600), "{text}");
        assert_eq!([true, false].map(|unix| options.retry_for(unix).as_secs()), [120, 120], "{text}");
    }
    let udp = own("udp_listen=127.0.0.1:1,udp_target=a:1,start_unit=ai,retry_timeout=9").unwrap().options;
    assert_eq!((udp.retry_for(false).as_secs(), udp.stop_when_idle), (9, None));
    let text = "[defaults]\nstop_when_idle = 60\n";
    let defaults = Config::gather(Some(("x", text)), [""; 0]).unwrap().0.defaults;
    let stops =
        |text: &str| seconds(mean(&forward(text).unwrap(), ListenSide::Own, &defaults).unwrap().options.stop_when_idle);
    assert_eq!(stops("listen=127.0.0.1:1,target=a:1,start_unit=a"), Some(60));
    assert_eq!(stops("listen=127.0.0.1:1,target=a:1"), None);
    assert_eq!(stops("listen=127.0.0.1:2,qrexec=work svc"), None);
    let faults = Config::gather(Some(("x", "[defaults]\nstart_unit = \"a\"\n")), [""; 0]).unwrap_err();
    assert!(faults.to_string().contains("start_unit cannot be a default"), "{faults}");
    let defaults = Config::gather(Some(("x", "[defaults]\nretry_timeout = 0\n")), [""; 0]).unwrap().0.defaults;
    let own = |text: &str| mean(&forward(text).unwrap(), ListenSide::Own, &defaults);
    assert!(own("listen=127.0.0.1:1,target=a:1").is_ok());
    let faults = own("listen=127.0.0.1:1,target=a:1,start_unit=a").unwrap_err();
    assert!(faults.to_string().contains("retry_timeout is 0"), "{faults}");
}
