//! The state of one stream, and which frames are legal in it.
//!
//! | frame | the far end takes it | the near end takes it |
//! |---|---|---|
//! | OPEN | of a new number; else a fault | never |
//! | OPENED | never | once, first of all frames of the stream |
//! | DATA | before the FIN, within the credit | after OPENED, before the FIN, within the credit |
//! | CREDIT | always | after OPENED |
//! | FIN | once | once, after OPENED |
//! | RESET | always | always |
//! | DGRAM | always | after OPENED |
//!
//! DATA, CREDIT and FIN belong to a call of bytes, DGRAM to one of datagrams. The near end may send DATA behind its
//! OPEN at once. After a RESET, whoever sent it, and of a stream that is over, everything that still comes is passed
//! over: the other end has sent it before it heard of the end. What was opened never is a fault, whatever comes of it.

use std::{num::NonZeroU32, time::Duration};

use super::{
    fault::MuxFault,
    kind::{MuxType, StreamId},
    window::{CREDIT_TAKEN, CreditWindow},
};

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamStep {
    /// Its OPEN was sent or has come, its OPENED not.
    Asked,
    /// Its OPENED was sent or has come.
    Opened,
    /// One of the ends has sent a RESET.
    Reset,
}

/// What one end knows of a stream.
#[derive(Clone, Copy, Debug)]
pub struct MuxStream {
    standing: StreamStep,
    /// Whether the frames of the other end have to wait for OPENED: at the near end.
    waits: bool,
    sent_fin: bool,
    got_fin: bool,
    /// Bytes that may be sent.
    pub(super) credit: u32,
    /// Bytes that may come.
    window: CreditWindow,
    /// The socket has something to send.
    pub(super) wants: bool,
}

impl MuxStream {
    pub(super) fn new(is_near: bool, credit: u32, window: u32, now: Duration) -> Self {
        Self {
            standing: StreamStep::Asked,
            waits: is_near,
            sent_fin: false,
            got_fin: false,
            credit,
            window: CreditWindow::new(window, now),
            wants: false,
        }
    }

    /// Nothing more is sent or taken: both ends have sent FIN, or one has sent RESET.
    pub fn is_over(&self) -> bool {
        self.was_reset() || (self.sent_fin && self.got_fin)
    }

    /// One of the ends has sent a RESET.
    pub fn was_reset(&self) -> bool {
        self.standing == StreamStep::Reset
    }

    /// Whether this end may still send.
    pub fn may_send(&self) -> bool {
        !self.was_reset() && !self.sent_fin
    }

    /// Bytes that may be sent now.
    pub fn credit(&self) -> u32 {
        if self.may_send() { self.credit } else { 0 }
    }

    /// Bytes that came and were not delivered yet.
    pub fn queued(&self) -> u32 {
        self.window.queued()
    }

    /// Bytes that the other end can make this one hold.
    pub fn window(&self) -> u32 {
        self.window.size()
    }

    /// Passes over what comes after a RESET, and finds what must not come before OPENED.
    fn takes(&self, kind: MuxType, id: StreamId) -> Result<bool, MuxFault> {
        match self.standing {
            StreamStep::Reset => Ok(false),
            StreamStep::Asked if self.waits => Err(MuxFault::BeforeOpened(kind, id)),
            StreamStep::Asked | StreamStep::Opened => Ok(true),
        }
    }

    /// OPENED is sent; false where the stream is over.
    pub(super) fn open(&mut self) -> bool {
        let asked = self.standing == StreamStep::Asked;
        if asked {
            self.standing = StreamStep::Opened;
        }
        asked
    }

    /// OPENED has come; false where it is passed over.
    pub(super) fn opened(&mut self, id: StreamId) -> Result<bool, MuxFault> {
        match self.standing {
            StreamStep::Reset => Ok(false),
            StreamStep::Opened => Err(MuxFault::OpenedAgain(id)),
            StreamStep::Asked => Ok(self.open()),
        }
    }

    /// DATA has come; false where it is passed over.
    pub(super) fn data(&mut self, id: StreamId, bytes: u32) -> Result<bool, MuxFault> {
        if !self.takes(MuxType::Data, id)? {
            return Ok(false);
        }
        if self.got_fin {
            return Err(MuxFault::AfterFin(MuxType::Data, id));
        }
        if self.window.receive(bytes) { Ok(true) } else { Err(MuxFault::BeyondCredit(id)) }
    }

    /// DGRAM has come; false where it is passed over.
    pub(super) fn datagram(&self, id: StreamId) -> Result<bool, MuxFault> {
        self.takes(MuxType::Dgram, id)
    }

    /// CREDIT has come; whether that lets the stream send.
    pub(super) fn credited(&mut self, id: StreamId, bytes: NonZeroU32) -> Result<bool, MuxFault> {
        if !self.takes(MuxType::Credit, id)? {
            return Ok(false);
        }
        let credit = self.credit.checked_add(bytes.get()).filter(|credit| *credit <= CREDIT_TAKEN);
        self.credit = credit.ok_or(MuxFault::TooMuchCredit(id))?;
        Ok(self.wants && self.may_send())
    }

    /// FIN has come; false where it is passed over.
    pub(super) fn ended(&mut self, id: StreamId) -> Result<bool, MuxFault> {
        if !self.takes(MuxType::Fin, id)? {
            return Ok(false);
        }
        if self.got_fin {
            return Err(MuxFault::AfterFin(MuxType::Fin, id));
        }
        self.got_fin = true;
        Ok(true)
    }

    /// RESET has come or is sent; false where there was one already.
    pub(super) fn reset(&mut self) -> bool {
        let first = !self.was_reset();
        self.standing = StreamStep::Reset;
        first
    }

    /// FIN is sent; false where it must not be.
    pub(super) fn end(&mut self) -> bool {
        let may = self.may_send();
        self.sent_fin = true;
        may
    }

    /// DATA is sent.
    pub(super) fn sent(&mut self, bytes: u32) {
        self.credit = self.credit.saturating_sub(bytes);
    }

    /// Bytes were given to the socket; the credit to be sent. An end that sends nothing more needs none.
    pub(super) fn delivered(&mut self, bytes: u32, growth: u32, now: Duration) -> Option<NonZeroU32> {
        let credit = self.window.deliver(bytes, growth, now);
        credit.filter(|_| !self.was_reset() && !self.got_fin)
    }
}
