//! What a run can hit: the kinds of fault, and the transitions of the machines as they are seen from outside.
//!
//! Each list is written once; counts, names, rates and the table that is printed follow from it.

/// Makes an enum of names, with all of them in order and a text for each.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = $text] $variant,)*
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// What it is called in the table.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// Its place in a table of all.
            #[must_use]
            pub fn index(self) -> usize {
                self as usize
            }
        }
    };
}

names! {
    /// A kind of fault, or of rough use.
    Fault {
        Slow = "I/O that takes long",
        AnyOrder = "write that lands after a later one",
        Lost = "write acknowledged that never lands",
        Twice = "write that lands twice",
        Ghost = "write that lands after its time-out",
        GhostOfDead = "write that lands after its writer's death",
        WriteHangs = "write that never answers nor lands",
        ReadHangs = "read that never answers",
        WriteError = "EIO on a write",
        ReadError = "EIO on a read",
        TornEnd512 = "write torn at the end, 512 bytes",
        TornMiddle512 = "write torn in the middle, 512 bytes",
        TornEnd4096 = "write torn at the end, 4096 bytes",
        TornMiddle4096 = "write torn in the middle, 4096 bytes",
        TornRead512 = "read torn at 512 bytes",
        TornRead4096 = "read torn at 4096 bytes",
        Stale = "stale read",
        Rot = "bit rot",
        MisdirectedWrite = "misdirected write",
        MisdirectedRead = "misdirected read",
        DeviceHangs = "device that hangs for a while",
        OnlyDeviceGone = "only device gone for a while",
        StripedDeviceGone = "one device of a stripe gone for a while",
        PathHangs = "one host's path to a device hangs for a while",
        PathGone = "one host's path to a device gone for a while",
        Rivals = "two servers that claim at the same moment",
        RivalClone = "two servers with the same epoch",
        CoordinatorCrash = "coordinator crash and restart under live members",
        CoordinatorPause = "coordinator paused for longer than every time-out",
        CoordinatorStop = "coordinator stopped in order and started again",
        MemberCrash = "member crash and reincarnation",
        MemberPause = "member paused for longer than every time-out",
        HeldWrite = "write of a paused host that lands after it woke",
        MemberStop = "member stopped in order and started again",
        Clone = "cloned host with an incarnation of its own in one slot",
        CloneRunning = "cloned host with the same incarnation in one slot",
        ClockFast = "clock that goes fast",
        ClockSlow = "clock that goes slow",
        BellLost = "doorbell lost",
        BellLate = "doorbell late",
        BellTwice = "doorbell repeated",
        Residue = "blocks of another pool left on the devices",
        Revoked = "slot revoked and allowed again",
        Abort = "stream aborted by its user",
        Linger = "stream closed while the peer never finishes",
        OneWay = "stream with nothing in one direction",
        SlowReader = "reader that gives buffers back late",
        BadRequest = "request that has to be refused",
        Impatient = "request given up before its answer",
    }
}

names! {
    /// A transition of one of the machines, by the tables of the design (section 5), as seen from outside.
    Transition {
        PairTurned = "pair: the other copy's turn",
        PairFailed = "pair: write failed, copy suspect",
        PairRewritten = "pair: suspect copy rewritten",
        PairReadBack = "pair: rewritten copy read back",
        PairProved = "pair: read-back agreed, the other copy's turn",
        PairDisproved = "pair: read-back differed, written again",
        FrameAhead = "frame: read ahead, not yet",
        FrameLonger = "frame: longer than the read, read again",
        FrameWhole = "frame: whole",
        FrameDamaged = "frame: damaged, read again",
        FrameAsked = "frame: asked for again",
        FrameAskedTwice = "frame: asked for again, second attempt or later",
        FrameServed = "frame: resend written",
        FrameHealedByRead = "frame: whole after damage without a resend",
        FrameHealedByResend = "frame: whole after a resend",
        FrameReadFailed = "frame: read failed, tried again",
        FrameWriteFailed = "frame: write failed, tried again",
        RingFull = "ring: full",
        RingRelieved = "ring: room again",
        RingWrapped = "ring: wrapped three times",
        ClaimFree = "claim: nobody there, claim written",
        ClaimSameHost = "claim: same host, no wait",
        ClaimSilent = "claim: another watched until dead, claim written",
        ClaimOwned = "claim: another lives, withdrawn",
        ClaimServing = "claim: waited, read again, serving",
        ClaimForeign = "claim: foreign epoch, withdrawn",
        ServingForeign = "serving: foreign epoch, ended",
        CoordinatorCloned = "coordinator: own epoch by another hand, ended",
        CoordinatorStopped = "coordinator: stopped in order",
        CoordinatorNoDevice = "coordinator: no device, ended",
        CoordinatorFenced = "coordinator: fenced",
        CoordinatorUnfenced = "coordinator: free again",
        CoordinatorDeviceLost = "coordinator: device lost",
        CoordinatorDeviceFound = "coordinator: device found",
        MemberUp = "slot: member up",
        MemberSuspect = "slot: member suspect",
        MemberVouched = "slot: suspect member vouched for",
        MemberDead = "slot: member dead or followed by another",
        MemberLeft = "slot: member stopped in order",
        Granted = "slot: request granted",
        GrantedLess = "slot: granted less than was asked for",
        RestHeld = "slot: grants of an earlier epoch rest",
        RestReleased = "slot: what rested is free again",
        CoordinatorTold = "slot: stream closed by the member's page",
        RefusedNoListener = "refused: no listener",
        RefusedNoSegments = "refused: no segments",
        RefusedNotEnrolled = "refused: not enrolled",
        RefusedBusy = "refused: busy",
        RefusedShuttingDown = "refused: shutting down",
        RefusedNoDevice = "refused: no common device",
        RefusedCipher = "refused: cipher",
        MemberJoined = "member: joined",
        CoordinatorSuspect = "member: coordinator suspect",
        CoordinatorVouched = "member: suspect coordinator vouched for",
        CoordinatorLost = "member: coordinator stopped, dead or replaced",
        Connected = "member: request granted",
        ConnectTimedOut = "member: request given up",
        MemberTold = "member: stream closed by the answer",
        MemberFenced = "member: fenced",
        MemberUnfenced = "member: free again",
        MemberDeviceLost = "member: device lost",
        MemberDeviceFound = "member: device found",
        MemberStopped = "member: stopped in order",
        MemberCloned = "member: cloned host, stopped",
        MemberNoDevice = "member: no device, stopped",
        ChallengeSeen = "challenge: changed and seen",
        PeerFinished = "connection: the peer's direction finished",
        FinishAcknowledged = "connection: own direction finished and seen",
        ClosedWell = "connection: both finished, closed",
        ResetByUs = "connection: reset by this side, the peer told",
        ResetByPeer = "connection: reset by the peer",
        ResetMedium = "connection: reset, medium",
        ResetDeviceLost = "connection: reset, device lost",
        ResetPeerDead = "connection: reset, peer dead",
        ResetCoordinatorGone = "connection: reset, coordinator gone",
        ResetAborted = "connection: reset, aborted",
        ResetLinger = "connection: reset, linger",
        ResetPeerClosed = "connection: reset, peer closed",
    }
}

/// How often each of something was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts<const N: usize>(pub [u64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Counts<N> {
    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        for (mine, others) in self.0.iter_mut().zip(&other.0) {
            *mine += others;
        }
    }
}

/// Everything that was hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// By kind of fault.
    pub faults: Counts<{ Fault::COUNT }>,
    /// By transition.
    pub transitions: Counts<{ Transition::COUNT }>,
}

impl Coverage {
    /// A fault took place.
    pub fn fault(&mut self, fault: Fault) {
        self.faults.0[fault.index()] += 1;
    }

    /// So many faults of a kind took place.
    pub fn faults(&mut self, fault: Fault, count: u64) {
        self.faults.0[fault.index()] += count;
    }

    /// A machine passed from one state to another.
    pub fn transition(&mut self, transition: Transition) {
        self.transitions.0[transition.index()] += 1;
    }

    /// A machine did so many times.
    pub fn transitions(&mut self, transition: Transition, count: u64) {
        self.transitions.0[transition.index()] += count;
    }

    /// Adds what another run hit.
    pub fn add(&mut self, other: &Self) {
        self.faults.add(&other.faults);
        self.transitions.add(&other.transitions);
    }

    /// The names of what was never hit.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = self.rows().filter(|(_, count)| *count == 0);
        missing.map(|(name, _)| name).collect()
    }

    /// Names and counts, faults first.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let faults = Fault::ALL.iter().map(|fault| fault.name());
        let transitions = Transition::ALL.iter().map(|passed| passed.name());
        let faults = faults.zip(self.faults.0.iter().copied());
        faults.chain(transitions.zip(self.transitions.0.iter().copied()))
    }
}
