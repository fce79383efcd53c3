//! Two ends that speak with each other, and ends that hear anything at all.

mod simulation;

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU16,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    call::{MAX_OPENS, MAX_STREAMS, MuxCall, MuxNews, MuxRole},
    fault::MuxFault,
    frame::{
        MuxContent, MuxFrame, MuxHello, ResetCause,
        tests::{frames, id},
    },
    kind::{MuxType, StreamId},
    window::{CREDIT_OF_CALL, FIRST_CREDIT, FLOOR},
};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What waits at an end for the call, in order. All of it is taken.
fn said(call: &mut MuxCall) -> Vec<u8> {
    std::mem::take(call.answers())
}

fn first<'a>(bytes: &'a [u8]) -> MuxFrame<'a> {
    MuxFrame::split(bytes).expect("a frame").expect("a whole one").0
}

/// Two ends that have greeted each other.
fn pair(content: MuxContent) -> (MuxCall, MuxCall) {
    let mut near = MuxCall::new(MuxRole::Near, content, FLOOR);
    let mut far = MuxCall::new(MuxRole::Far, content, FLOOR);
    assert_eq!(near.open(at(0)), None, "before the other end is there");
    let (hers, his) = (said(&mut near), said(&mut far));
    assert_eq!(far.hear(first(&hers), at(0)), Ok(MuxNews::Greeted));
    assert_eq!(near.hear(first(&his), at(0)), Ok(MuxNews::Greeted));
    (near, far)
}

/// A far end with one stream that is connected, 1, and one that is being connected, 2.
fn far() -> MuxCall {
    let (_, mut far) = pair(MuxContent::Bytes);
    assert_eq!(far.hear(MuxFrame::Open(id(1)), at(0)), Ok(MuxNews::Wanted(id(1))));
    far.opened(id(1));
    assert_eq!(far.hear(MuxFrame::Open(id(2)), at(0)), Ok(MuxNews::Wanted(id(2))));
    far
}

/// A near end with one stream that is connected, 1, and one that is being connected, 2.
fn near() -> MuxCall {
    let (mut near, _) = pair(MuxContent::Bytes);
    assert_eq!((near.open(at(0)), near.open(at(0))), (Some(id(1)), Some(id(2))));
    assert_eq!(near.hear(MuxFrame::Opened(id(1)), at(0)), Ok(MuxNews::Opened(id(1))));
    near
}

const ONE: std::num::NonZeroU32 = std::num::NonZeroU32::MIN;

/// Each line of the table in `stream.rs`, and each fault that it has.
#[test]
fn each_frame_is_legal_where_the_table_says_so() {
    let (fin, reset) = (MuxFrame::Fin(id(1)), MuxFrame::Reset(id(1), ResetCause::Socket));
    let (data, credit) = (MuxFrame::Data(id(1), b"x"), MuxFrame::Credit(id(1), ONE));
    let large = [0; 40_000];
    let ended = Ok(MuxNews::Ended(id(1)));
    let cases: [(&str, &[MuxFrame<'_>], Result<MuxNews<'_>, MuxFault>); 17] = [
        ("far", &[MuxFrame::Opened(id(1))], Err(MuxFault::Unexpected(MuxType::Opened))),
        ("near", &[MuxFrame::Open(id(3))], Err(MuxFault::Unexpected(MuxType::Open))),
        ("far", &[MuxFrame::Open(id(2))], Err(MuxFault::OldNumber(id(2)))),
        ("far", &[MuxFrame::Open(id(9))], Ok(MuxNews::Wanted(id(9)))),
        ("far", &[MuxFrame::Data(id(2), b"y")], Ok(MuxNews::Bytes(id(2), b"y"))),
        ("near", &[MuxFrame::Data(id(2), b"y")], Err(MuxFault::BeforeOpened(MuxType::Data, id(2)))),
        ("near", &[MuxFrame::Opened(id(1))], Err(MuxFault::OpenedAgain(id(1)))),
        ("near", &[MuxFrame::Fin(id(2))], Err(MuxFault::BeforeOpened(MuxType::Fin, id(2)))),
        ("both", &[data, fin], ended),
        ("both", &[fin, fin], Err(MuxFault::AfterFin(MuxType::Fin, id(1)))),
        ("both", &[fin, data], Err(MuxFault::AfterFin(MuxType::Data, id(1)))),
        ("both", &[fin, credit], Ok(MuxNews::Nothing)),
        ("both", &[fin, reset], Ok(MuxNews::Reset(id(1), ResetCause::Socket))),
        ("both", &[reset, data, fin, fin, credit, reset], Ok(MuxNews::Nothing)),
        ("both", &[MuxFrame::Data(id(1), &large)], Err(MuxFault::BeyondCredit(id(1)))),
        ("both", &[MuxFrame::Data(id(7), b"x")], Err(MuxFault::NeverOpened(MuxType::Data, id(7)))),
        ("both", &[MuxFrame::Dgram(id(1), b"x")], Err(MuxFault::Unexpected(MuxType::Dgram))),
    ];
    let mut tried = 0;
    for (whose, sent, told) in cases {
        for (mut end, name) in [(far(), "far"), (near(), "near")] {
            if whose == name || whose == "both" {
                let last = sent.iter().map(|frame| end.hear(*frame, at(1))).last().expect("one frame");
                assert_eq!(last, told, "{name}: {sent:?}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 26);
}

#[test]
fn nothing_comes_before_hello_and_hello_comes_once() {
    let greeting = |version, content| MuxFrame::Hello(MuxHello { version, content, credit: 1, streams: 1 });
    for role in [MuxRole::Near, MuxRole::Far] {
        let new = || MuxCall::new(role, MuxContent::Bytes, FLOOR);
        assert_eq!(new().hear(MuxFrame::Ack(ONE), at(0)), Err(MuxFault::NoHello(MuxType::Ack)));
        assert_eq!(new().hear(greeting(0, MuxContent::Bytes), at(0)), Err(MuxFault::Version(0)));
        assert_eq!(new().hear(greeting(1, MuxContent::Datagrams), at(0)), Err(MuxFault::OtherContent));
        let mut end = new();
        assert_eq!(end.hear(greeting(2, MuxContent::Bytes), at(0)), Ok(MuxNews::Greeted));
        assert_eq!(end.hear(greeting(1, MuxContent::Bytes), at(0)), Err(MuxFault::HelloAgain));
    }
}

/// A peer that knows one stream at a time gets one.
#[test]
fn no_more_streams_are_opened_than_the_far_end_takes() {
    let mut near = MuxCall::new(MuxRole::Near, MuxContent::Bytes, FLOOR);
    let hello = MuxHello { version: 1, content: MuxContent::Bytes, credit: 10, streams: 1 };
    near.hear(MuxFrame::Hello(hello), at(0)).expect("greeted");
    assert_eq!((near.open(at(0)), near.open(at(0))), (Some(id(1)), None));
    near.release(id(1));
    assert_eq!(near.open(at(0)), Some(id(2)));
    near.wake(id(2));
    assert_eq!(near.turn().map(|turn| turn.most), Some(10), "the credit of HELLO");
}

#[test]
fn a_further_open_is_turned_away_and_the_others_go_on() {
    let (_, mut far) = pair(MuxContent::Bytes);
    for n in 1..=MAX_STREAMS {
        assert_eq!(far.hear(MuxFrame::Open(id(n)), at(0)), Ok(MuxNews::Wanted(id(n))));
    }
    assert_eq!(far.windows(), CREDIT_OF_CALL);
    said(&mut far);
    assert_eq!(far.hear(MuxFrame::Open(id(9000)), at(0)), Ok(MuxNews::Nothing));
    assert_eq!(first(&said(&mut far)), MuxFrame::Reset(id(9000), ResetCause::Full));
    assert_eq!((far.held(), far.turned_away()), (MAX_STREAMS as usize, 1));
    assert_eq!(far.hear(MuxFrame::Data(id(9000), b"x"), at(0)), Ok(MuxNews::Nothing), "sent before it heard");
    far.release(id(1));
    assert_eq!(far.hear(MuxFrame::Open(id(9001)), at(0)), Ok(MuxNews::Wanted(id(9001))));
}

#[test]
fn after_5000_opens_nothing_is_read_until_the_second_is_over() {
    let (_, mut far) = pair(MuxContent::Bytes);
    for n in 1..=MAX_OPENS {
        assert_eq!(far.pause(at(900)), None);
        far.hear(MuxFrame::Open(id(n)), at(400)).expect("legal");
        far.release(id(n));
    }
    assert_eq!((far.pause(at(900)), far.pause(at(1000))), (Some(at(100)), None));
    far.hear(MuxFrame::Open(id(9000)), at(1000)).expect("legal");
    assert_eq!(far.pause(at(1000)), None);
}

#[test]
fn acknowledgements_that_were_not_due_end_the_call() {
    let mut near = near();
    near.wake(id(1));
    let turn = near.turn().expect("it wants to send");
    let _ = near.sent(turn, NonZeroU16::new(12).expect("not zero"), false);
    let ack = |n| MuxFrame::Ack(std::num::NonZeroU32::new(n).expect("not zero"));
    assert_eq!(near.hear(ack(20), at(1)), Ok(MuxNews::Nothing));
    assert_eq!(near.hear(ack(1), at(1)), Err(MuxFault::TooMuchAcknowledged));
}

/// 16 MiB, whatever comes in which parts.
#[test]
fn credit_has_an_end() {
    let mut near = near();
    let much = MuxFrame::Credit(id(1), std::num::NonZeroU32::new(16 << 20).expect("not zero"));
    assert_eq!(near.hear(much, at(1)), Err(MuxFault::TooMuchCredit(id(1))));
    let all = MuxFrame::Credit(id(1), std::num::NonZeroU32::MAX);
    assert_eq!(near.hear(all, at(1)), Err(MuxFault::TooMuchCredit(id(1))));
}

/// What is in a stream of two ends in the test of whole stories.
#[derive(Debug, Default)]
struct Way {
    /// Bytes that the sender's socket still has.
    has: usize,
    /// Its end comes behind them.
    ends: bool,
    sent: usize,
    came: usize,
    waits: usize,
    finished: bool,
}

#[derive(Debug, Default)]
struct Story {
    /// By the role of the sender.
    ways: BTreeMap<(StreamId, bool), Way>,
    reset: Vec<StreamId>,
}

#[derive(Clone, Debug)]
enum Act {
    Open,
    Wake { stream: usize, up: bool, bytes: usize, ends: bool },
    Deliver { stream: usize, up: bool, share: usize },
    Reset { stream: usize, near: bool },
    Pump { near: bool },
    Arrive { near: bool, bytes: usize },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let (stream, up) = (0..6_usize, any::<bool>());
    let act = prop_oneof![
        1 => Just(Act::Open),
        4 => (stream.clone(), up, 0..200_000_usize, prop::bool::weighted(0.2))
            .prop_map(|(stream, up, bytes, ends)| Act::Wake { stream, up, bytes, ends }),
        4 => (stream.clone(), any::<bool>(), 1..4_usize)
            .prop_map(|(stream, up, share)| Act::Deliver { stream, up, share }),
        1 => (stream, any::<bool>()).prop_map(|(stream, near)| Act::Reset { stream, near }),
        6 => any::<bool>().prop_map(|near| Act::Pump { near }),
        6 => (any::<bool>(), 1..60_000_usize).prop_map(|(near, bytes)| Act::Arrive { near, bytes }),
    ];
    prop::collection::vec(act, 1..300)
}

/// Both ends with what is between them.
struct Both {
    ends: [MuxCall; 2],
    /// Bytes on their way from each.
    wires: [VecDeque<u8>; 2],
    story: Story,
    opened: Vec<StreamId>,
    now: Duration,
}

impl Both {
    fn new() -> Self {
        let (near, far) = pair(MuxContent::Bytes);
        let wires = Default::default();
        Self { ends: [near, far], wires, story: Story::default(), opened: Vec::new(), now: Duration::ZERO }
    }

    fn pump(&mut self, end: usize) {
        let Self { ends, wires, story, .. } = self;
        let (call, wire) = (&mut ends[end], &mut wires[end]);
        loop {
            wire.extend(said(call));
            let Some(turn) = call.turn() else { break };
            let way = story.ways.entry((turn.id, end == 0)).or_default();
            let bytes = way.has.min(turn.most);
            way.has -= bytes;
            match NonZeroU16::new(u16::try_from(bytes).expect("a frame")) {
                Some(n) => {
                    way.sent += bytes;
                    wire.extend(call.sent(turn, n, true));
                    wire.extend(std::iter::repeat_n(7, bytes));
                }
                None if way.ends => call.end(turn.id),
                None => call.dry(turn),
            }
        }
    }

    fn arrive(&mut self, end: usize, most: usize) {
        let wire = &mut self.wires[1 - end];
        let bytes = wire.make_contiguous();
        let mut at = 0;
        while let Some((frame, size)) = MuxFrame::split(&bytes[at..]).expect("an honest end writes frames") {
            at += size;
            let news = self.ends[end].hear(frame, self.now).expect("an honest end keeps the rules");
            let from_near = end == 1;
            match news {
                MuxNews::Wanted(id) => self.ends[end].opened(id),
                MuxNews::Bytes(id, bytes) => {
                    let way = self.story.ways.get_mut(&(id, from_near)).expect("somebody sent it");
                    assert!(!way.finished, "bytes behind the end");
                    way.came += bytes.len();
                    way.waits += bytes.len();
                }
                MuxNews::Ended(id) => {
                    self.story.ways.entry((id, from_near)).or_default().finished = true;
                }
                MuxNews::Reset(id, _) => self.story.reset.push(id),
                _ => {}
            }
            if at >= most {
                break;
            }
        }
        wire.drain(..at);
    }

    fn act(&mut self, act: &Act) {
        self.now += Duration::from_micros(100);
        let opened = &self.opened;
        let of = |stream: usize| opened.get(stream % opened.len().max(1)).copied();
        match *act {
            Act::Open => self.opened.extend(self.ends[0].open(self.now)),
            Act::Wake { stream, up, bytes, ends } => {
                let Some(id) = of(stream) else { return };
                if self.ends[usize::from(!up)].stream(id).is_none() {
                    return; // the far end has not heard of it
                }
                let way = self.story.ways.entry((id, up)).or_default();
                if !way.ends {
                    way.has += bytes;
                    way.ends = ends;
                }
                self.ends[usize::from(!up)].wake(id);
            }
            Act::Deliver { stream, up, share } => {
                let Some(id) = of(stream) else { return };
                let Some(way) = self.story.ways.get_mut(&(id, up)) else { return };
                let bytes = way.waits / share;
                way.waits -= bytes;
                self.ends[usize::from(up)].delivered(id, bytes, self.now);
            }
            Act::Reset { stream, near } => {
                let Some(id) = of(stream) else { return };
                self.story.reset.push(id);
                self.ends[usize::from(!near)].reset(id, ResetCause::Socket);
            }
            Act::Pump { near } => self.pump(usize::from(!near)),
            Act::Arrive { near, bytes } => self.arrive(usize::from(!near), bytes),
        }
    }

    /// Lets everything arrive and be delivered.
    fn settle(&mut self) {
        for _ in 0..200 {
            for end in [0, 1] {
                self.pump(end);
                self.arrive(1 - end, usize::MAX);
            }
            for (id, up) in self.story.ways.keys().copied().collect::<Vec<_>>() {
                self.now += Duration::from_micros(1);
                let way = self.story.ways.get_mut(&(id, up)).expect("it is there");
                let bytes = std::mem::take(&mut way.waits);
                self.ends[usize::from(up)].delivered(id, bytes, self.now);
            }
        }
    }
}

proptest! {
    /// Whatever sockets do in whatever order: two honest ends find no fault in each other, nothing is held beyond the
    /// windows, and all that was to be sent arrives, with its end, unless the stream was reset.
    #[test]
    fn two_ends_bring_everything_over(acts in acts()) {
        let mut both = Both::new();
        for act in &acts {
            both.act(act);
            for end in &both.ends {
                prop_assert!(end.windows() <= CREDIT_OF_CALL);
            }
        }
        both.settle();
        for ((id, up), way) in &both.story.ways {
            prop_assert_eq!(way.sent, way.came.max(if both.story.reset.contains(id) { way.sent } else { 0 }));
            if !both.story.reset.contains(id) {
                prop_assert_eq!((way.has, way.waits, way.finished), (0, 0, way.ends), "stream {} up {}", id, up);
            }
        }
        for end in &both.ends {
            prop_assert!(end.flight().bytes() < u64::from(FLOOR), "{} bytes never acknowledged", end.flight().bytes());
        }
    }

    /// Any frames in any order: no panic, and bounds for all that is held.
    #[test]
    fn any_frames_end_the_call_or_stay_within_the_bounds(
        sent in prop::collection::vec(frames(), 1..200), is_near in any::<bool>(), deliver in any::<bool>(),
    ) {
        let mut end = if is_near { near() } else { far() };
        let mut held = BTreeMap::<StreamId, u64>::new();
        for bytes in &sent {
            let Ok(news) = end.hear(first(bytes), at(1)) else { break };
            match news {
                MuxNews::Wanted(id) => end.opened(id),
                MuxNews::Bytes(id, bytes) if deliver => end.delivered(id, bytes.len(), at(1)),
                MuxNews::Bytes(id, bytes) => *held.entry(id).or_default() += bytes.len() as u64,
                MuxNews::Reset(id, _) => {
                    held.remove(&id);
                    end.release(id);
                }
                _ => {}
            }
            for (id, bytes) in &held {
                prop_assert!(*bytes <= u64::from(FIRST_CREDIT), "{} bytes of stream {}", bytes, id);
            }
            prop_assert!(end.windows() <= CREDIT_OF_CALL && end.held() <= MAX_STREAMS as usize);
            prop_assert!(end.answers().len() < 200 * 64);
        }
    }
}
