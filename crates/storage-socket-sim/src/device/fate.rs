//! What becomes of an I/O: drawn from the rates of a run, each kind of fault from a stream of its own.

use super::{Effect, Landing, Part, Written};
use crate::{
    coverage::{Coverage, Fault},
    rng::Rng,
    scenario::Rates,
};
use std::{rc::Rc, time::Duration};
use storage_socket_proto::{BLOCK_BYTES, IoFailure};

/// The rates of a run, and the draws from them.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Millionths of an I/O.
    pub rates: Rates,
    /// The usual time of an I/O.
    pub latency: (Duration, Duration),
    /// The longest time of a slow one.
    pub slow_max: Duration,
    /// How long a ghost may take.
    pub ghost_max: Duration,
    /// How far back a stale read goes at most.
    pub stale_max: Duration,
    /// Draws of each kind.
    draws: Vec<Rng>,
    time: Rng,
}

/// When and how an I/O is answered; `None` is never.
pub type Answered = Option<(Duration, Result<(), IoFailure>)>;

/// What becomes of a write.
#[derive(Clone, Debug, Default)]
pub struct WriteFate {
    /// When it is answered.
    pub answer: Answered,
    /// What lands after how long: in order, so that the last part of a torn one is the last.
    pub landings: Vec<(Duration, Landing)>,
    /// What lands elsewhere instead, on a block that the device picks by this number.
    pub astray: Option<(Duration, u64)>,
}

/// How a write tears.
#[derive(Clone, Copy, Debug)]
pub struct Tear {
    part: Part,
    is_lost: bool,
}

/// What becomes of a read.
#[derive(Clone, Debug, Default)]
pub struct ReadFate {
    /// When it is answered.
    pub answer: Answered,
    /// Sectors of this size are read at two different times.
    pub torn: Option<usize>,
    /// How far back it may look.
    pub stale: Option<Duration>,
    /// It reads other blocks, picked by this number.
    pub astray: Option<u64>,
}

impl Faults {
    /// Draws for the rates of a scenario.
    #[must_use]
    pub fn new(seed: u64, rates: Rates, slow_max: Duration) -> Self {
        let draw = |fault: &Fault| Rng::new(crate::rng::mix(seed ^ (fault.index() as u64 + 1)));
        Self {
            rates,
            latency: (Duration::from_micros(50), Duration::from_micros(400)),
            slow_max,
            ghost_max: Duration::from_millis(1500),
            stale_max: crate::scenario::timeouts().stale,
            draws: Fault::ALL.iter().map(draw).collect(),
            time: Rng::new(crate::rng::mix(seed ^ 0x71_3e)),
        }
    }

    /// Whether a fault of this kind happens now.
    pub fn hits(&mut self, fault: Fault) -> bool {
        let rate = self.rates.of(fault);
        rate > 0 && self.draws[fault.index()].chance(rate)
    }

    /// Draws for a fault of this kind.
    pub fn draw(&mut self, fault: Fault) -> &mut Rng {
        &mut self.draws[fault.index()]
    }

    fn time(&mut self, hit: &mut Coverage) -> Duration {
        if self.hits(Fault::Slow) {
            hit.fault(Fault::Slow);
            let (low, high) = (self.latency.1, self.slow_max);
            self.draw(Fault::Slow).span(low, high)
        } else {
            self.time.span(self.latency.0, self.latency.1)
        }
    }

    /// Decides what becomes of a write.
    pub fn write(&mut self, lba: u64, bytes: &Written, hit: &mut Coverage) -> WriteFate {
        let time = self.time(hit);
        let landing = |part, effect| Landing {
            lba,
            bytes: Rc::clone(bytes),
            part,
            effect,
        };
        if self.hits(Fault::WriteHangs) {
            hit.fault(Fault::WriteHangs);
            return WriteFate::default();
        }
        if self.hits(Fault::Ghost) {
            let (deadline, most) = (crate::scenario::timeouts().io_deadline, self.ghost_max);
            let late = self.draw(Fault::Ghost).span(deadline, most);
            return WriteFate {
                landings: vec![(late, landing(Part::Whole, Effect::Written))],
                ..WriteFate::default()
            };
        }
        if self.hits(Fault::WriteError) {
            hit.fault(Fault::WriteError);
            return WriteFate {
                answer: Some((time, Err(IoFailure::Error))),
                landings: match self.draw(Fault::WriteError).below(3) {
                    0 => Vec::new(),
                    1 => vec![(time, landing(Part::Whole, Effect::Written))],
                    _ => vec![(time, landing(Part::Only(0, 512), Effect::Written))],
                },
                astray: None,
            };
        }
        let mut fate = WriteFate {
            answer: Some((time, Ok(()))),
            ..WriteFate::default()
        };
        if self.hits(Fault::Lost) {
            hit.fault(Fault::Lost);
            fate.landings = vec![(time, landing(Part::Whole, Effect::Lost))];
        } else if self.hits(Fault::MisdirectedWrite) {
            hit.fault(Fault::MisdirectedWrite);
            fate.landings = vec![(time, landing(Part::Whole, Effect::Lost))];
            fate.astray = Some((time, self.draw(Fault::MisdirectedWrite).bits()));
        } else if let Some(Tear { part, is_lost }) = self.tear(bytes.len(), hit) {
            let early = self.time.span(Duration::ZERO, time);
            let rest = match part {
                Part::Only(from, to) => Part::Except(from, to),
                Part::Except(from, to) => Part::Only(from, to),
                Part::Whole => Part::Whole,
            };
            let effect = if is_lost {
                Effect::Lost
            } else {
                Effect::Written
            };
            fate.landings = vec![
                (early, landing(part, Effect::Written)),
                (time, landing(rest, effect)),
            ];
        } else {
            fate.landings = vec![(time, landing(Part::Whole, self.rot(bytes.len(), hit)))];
        }
        if self.hits(Fault::Twice) {
            hit.fault(Fault::Twice);
            let most = self.ghost_max;
            let again = self.draw(Fault::Twice).span(Duration::ZERO, most);
            let landing = landing(Part::Whole, Effect::Written);
            fate.landings.push((time + again, landing));
        }
        fate
    }

    fn rot(&mut self, length: usize, hit: &mut Coverage) -> Effect {
        if !self.hits(Fault::Rot) {
            return Effect::Written;
        }
        hit.fault(Fault::Rot);
        let byte = self.draw(Fault::Rot).below(length as u64);
        Effect::Rots(usize::try_from(byte).unwrap_or(0))
    }

    /// What lands of a torn write first; the rest lands later, or never.
    fn tear(&mut self, length: usize, hit: &mut Coverage) -> Option<Tear> {
        let kinds = [
            (Fault::TornEnd512, 512, false),
            (Fault::TornMiddle512, 512, true),
            (Fault::TornEnd4096, BLOCK_BYTES, false),
            (Fault::TornMiddle4096, BLOCK_BYTES, true),
        ];
        for (fault, sector, in_the_middle) in kinds {
            let sectors = (length / sector) as u64;
            let least = if in_the_middle { 3 } else { 2 };
            if sectors < least || !self.hits(fault) {
                continue;
            }
            hit.fault(fault);
            let rng = self.draw(fault);
            let (from, to) = if in_the_middle {
                let from = rng.between(1, sectors - 2);
                (from, rng.between(from + 1, sectors - 1))
            } else {
                (rng.between(1, sectors - 1), sectors)
            };
            let byte = |sectors: u64| usize::try_from(sectors).unwrap_or(0) * sector;
            let part = if rng.chance(500_000) {
                Part::Except(byte(from), byte(to))
            } else {
                Part::Only(byte(from), byte(to))
            };
            return Some(Tear {
                part,
                is_lost: rng.chance(300_000),
            });
        }
        None
    }

    /// Decides what becomes of a read.
    pub fn read(&mut self, hit: &mut Coverage) -> ReadFate {
        if self.hits(Fault::ReadHangs) {
            hit.fault(Fault::ReadHangs);
            return ReadFate::default();
        }
        let time = self.time(hit);
        if self.hits(Fault::ReadError) {
            hit.fault(Fault::ReadError);
            return ReadFate {
                answer: Some((time, Err(IoFailure::Error))),
                ..ReadFate::default()
            };
        }
        let torn = [
            (Fault::TornRead512, 512),
            (Fault::TornRead4096, BLOCK_BYTES),
        ];
        let torn = torn.into_iter().find(|(fault, _)| self.hits(*fault));
        let torn = torn.map(|(fault, sector)| {
            hit.fault(fault);
            sector
        });
        let stale = self.hits(Fault::Stale).then_some(self.stale_max);
        if stale.is_some() {
            hit.fault(Fault::Stale);
        }
        let astray = self.hits(Fault::MisdirectedRead);
        let astray = astray.then(|| self.draw(Fault::MisdirectedRead).bits());
        if astray.is_some() {
            hit.fault(Fault::MisdirectedRead);
        }
        ReadFate {
            answer: Some((time, Ok(()))),
            torn,
            stale,
            astray,
        }
    }
}
