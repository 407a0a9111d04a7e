//! Two processes over one pool: the caller's is the coordinator, a child is the member and does what it is told.
//!
//! What the child is told comes through its standard input, and its answers leave by its standard output: a JSON
//! document a line. So nothing is on the devices but what is measured.

use super::{
    BenchOptions, PATIENCE, Shape,
    counters::Sample,
    doorbell::Bell,
    flow::{End, FlowReport, Traffic, Way},
    latency::{echo, ping},
};
use crate::{FormatOptions, Listener, Polling, Pool, PoolOptions, Role, Stream, format};
use direct_io::{EngineChoice, EngineKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use storage_socket_proto::{Port, SlotIndex};

/// How each side learns what the other has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// It reads the devices again and again, the less often the longer nothing comes.
    Polled,
    /// It reads them without a pause while its user waits.
    PolledHot,
    /// The other rings over the loopback network.
    Rung,
}

impl News {
    fn polling(self) -> Polling {
        match self {
            Self::PolledHot => Polling::Hot,
            Self::Polled | Self::Rung => Polling::Adaptive,
        }
    }
}

/// The two processes.
pub struct Pair {
    pool: Pool,
    _bell: Option<Bell>,
    peer: Peer,
    start: Instant,
}

/// The child process, and the pipes to and from it.
pub(super) struct Peer {
    child: Child,
    /// Closed to let the child leave.
    tasks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What the child is told first.
#[derive(Serialize, Deserialize)]
struct Errand {
    devices: Vec<PathBuf>,
    lock_dir: PathBuf,
    #[serde(with = "Engines")]
    engine: EngineChoice,
    news: News,
    doorbell: Option<SocketAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "EngineChoice")]
pub(super) enum Engines {
    Auto,
    IoUring,
    ThreadPool,
}

/// What the child is told next.
#[derive(Serialize, Deserialize)]
enum Task {
    /// Connect to the port and keep bytes moving.
    Flow { port: u16, shape: Shape, way: Way },
    /// Say what was spent.
    Count,
    /// Let the bytes come to an end.
    End,
    /// Connect to the port and send messages back.
    Echo {
        port: u16,
        shape: Shape,
        messages: usize,
    },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Joined { doorbell: Option<SocketAddr> },
    Counted(Box<Sample>),
    Done,
    Failed(String),
}

impl Pair {
    /// Formats the devices, whatever is on them, joins them and starts `child`, which has to call [`child`].
    ///
    /// # Errors
    /// The devices are in use, or fail; the child does not come.
    pub fn start(options: &BenchOptions, news: News, child: &mut Command) -> io::Result<Self> {
        let again = FormatOptions {
            force: true,
            ..options.format.clone()
        };
        format(&options.devices, &again)?;
        let bell = (news == News::Rung).then(Bell::new).transpose()?;
        let slots = [SlotIndex(0)].into();
        let mut how = PoolOptions::new(Role::Coordinator { slots }, "bench", &options.lock_dir);
        how.engine = options.engine;
        how.polling = news.polling();
        how.doorbell = bell.as_ref().map(Bell::ring);
        let pool = Pool::open(&options.devices, how)?;
        pool.wait_ready(PATIENCE)?;
        let mut peer = Peer::start(child)?;
        let doorbell = bell.as_ref().map(Bell::address).transpose()?;
        let answer = peer.ask(&Errand {
            devices: options.devices.clone(),
            lock_dir: options.lock_dir.clone(),
            engine: options.engine,
            news,
            doorbell,
        })?;
        if let (Some(bell), Answer::Joined { doorbell: Some(to) }) = (&bell, answer) {
            bell.hang(to, &pool, SlotIndex(0))?;
        }
        Ok(Self {
            pool,
            _bell: bell,
            peer,
            start: Instant::now(),
        })
    }

    /// Which engine runs.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.pool.engine().0
    }

    /// Keeps bytes moving for `duration`, after the rings have gone round, or longer if nothing came in it.
    ///
    /// # Errors
    /// The stream fails, or the child.
    pub fn flow(&mut self, shape: &Shape, way: Way, duration: Duration) -> io::Result<FlowReport> {
        let listener = self.listen(shape)?;
        self.peer.tell(&Task::Flow {
            port: listener.port().0,
            shape: *shape,
            way,
        })?;
        let stream = accept(&listener, shape)?;
        let devices = self.pool.device_count();
        let traffic = Traffic::start(stream, way, End::Coordinator, shape, devices);
        traffic.wait_warm();
        self.peer.answer()?;
        let before = self.count(&traffic)?;
        let report = loop {
            thread::sleep(duration);
            let report = FlowReport::new(&before, &self.count(&traffic)?);
            // A rate of nothing is no figure: a slow disk is waited for.
            if report.received() > 0.0 || traffic.has_ended() {
                break report;
            }
        };
        traffic.stop();
        self.peer.tell(&Task::End)?;
        traffic.wait()?;
        self.peer.answer()?;
        Ok(report)
    }

    /// Half of each round trip of so many messages of [`MESSAGE_BYTES`](super::MESSAGE_BYTES), in microseconds.
    ///
    /// # Errors
    /// The stream fails, or the child.
    pub fn latency(&mut self, shape: &Shape, messages: usize) -> io::Result<Vec<f64>> {
        let listener = self.listen(shape)?;
        self.peer.tell(&Task::Echo {
            port: listener.port().0,
            shape: *shape,
            messages,
        })?;
        let halves = ping(accept(&listener, shape)?, messages)?;
        self.peer.answer()?;
        Ok(halves)
    }

    /// Lets the child leave, and leaves.
    ///
    /// # Errors
    /// The child ended with a failure.
    pub fn finish(mut self) -> io::Result<()> {
        self.peer.tasks = None;
        let ended = self.peer.child.wait()?;
        self.pool.close();
        if ended.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("the other process: {ended}")))
        }
    }

    fn listen(&self, shape: &Shape) -> io::Result<Listener> {
        Listener::bind(&self.pool, Port(0), shape.seal.listens())
    }

    fn count(&mut self, traffic: &Traffic) -> io::Result<[Sample; 2]> {
        let own = Sample::take(&self.pool, self.start, traffic.counted());
        match self.peer.ask(&Task::Count)? {
            Answer::Counted(sample) => Ok([own, *sample]),
            _ => Err(io::Error::other("the other process didn't count")),
        }
    }
}

fn accept(listener: &Listener, shape: &Shape) -> io::Result<Stream> {
    listener.accept_timeout(PATIENCE)?.accept(shape.options())
}

impl Peer {
    pub(super) fn start(child: &mut Command) -> io::Result<Self> {
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (tasks, answers) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            child,
            tasks,
            answers: BufReader::new(answers.expect("it was piped")),
        })
    }

    fn ask(&mut self, task: &impl Serialize) -> io::Result<Answer> {
        self.tell(task)?;
        self.answer()
    }

    pub(super) fn tell(&mut self, task: &impl Serialize) -> io::Result<()> {
        let tasks = self.tasks.as_mut();
        write_line(tasks.ok_or(io::ErrorKind::NotConnected)?, task)
    }

    fn answer(&mut self) -> io::Result<Answer> {
        match self.hear()? {
            Answer::Failed(why) => Err(io::Error::other(why)),
            answer => Ok(answer),
        }
    }

    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let heard = read_line(&mut self.answers)?;
        heard.ok_or_else(|| io::Error::other("the other process is gone"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // When a measurement failed, the child may wait for ever for what doesn't come.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

pub(super) fn write_line(out: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

pub(super) fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// The other process: does what it is told on its standard input until that ends.
///
/// # Errors
/// The pool can't be joined, or a stream fails; the one that told it hears of it as well.
pub fn child() -> io::Result<()> {
    let (mut tasks, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let done = Member::join(&mut tasks, &mut answers)
        .and_then(|mut member| member.obey(&mut tasks, &mut answers));
    if let Err(error) = &done {
        write_line(&mut answers, &Answer::Failed(error.to_string()))?;
    }
    done
}

struct Member {
    pool: Pool,
    _bell: Option<Bell>,
    start: Instant,
    traffic: Option<Traffic>,
}

impl Member {
    fn join(tasks: &mut impl BufRead, answers: &mut impl Write) -> io::Result<Self> {
        let errand: Errand = read_line(tasks)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let slots = vec![SlotIndex(0)];
        let bell = (errand.news == News::Rung).then(Bell::new).transpose()?;
        let mut how = PoolOptions::new(Role::Member { slots }, "bench", &errand.lock_dir);
        how.engine = errand.engine;
        how.polling = errand.news.polling();
        how.doorbell = bell.as_ref().map(Bell::ring);
        let pool = Pool::open(&errand.devices, how)?;
        if let (Some(bell), Some(to)) = (&bell, errand.doorbell) {
            bell.hang(to, &pool, SlotIndex(0))?;
        }
        pool.wait_ready(PATIENCE)?;
        let doorbell = bell.as_ref().map(Bell::address).transpose()?;
        write_line(answers, &Answer::Joined { doorbell })?;
        Ok(Self {
            pool,
            _bell: bell,
            start: Instant::now(),
            traffic: None,
        })
    }

    fn obey(&mut self, tasks: &mut impl BufRead, answers: &mut impl Write) -> io::Result<()> {
        while let Some(task) = read_line(tasks)? {
            let answer = self.perform(task)?;
            write_line(answers, &answer)?;
        }
        self.pool.close();
        Ok(())
    }

    fn perform(&mut self, task: Task) -> io::Result<Answer> {
        match task {
            Task::Flow { port, shape, way } => {
                let stream = self.connect(port, &shape)?;
                let devices = self.pool.device_count();
                let traffic = Traffic::start(stream, way, End::Member, &shape, devices);
                traffic.wait_warm();
                self.traffic = Some(traffic);
            }
            Task::Count => {
                let counted = self.traffic.as_ref().map(Traffic::counted);
                let sample = Sample::take(&self.pool, self.start, counted.unwrap_or_default());
                return Ok(Answer::Counted(Box::new(sample)));
            }
            Task::End => {
                if let Some(traffic) = self.traffic.take() {
                    traffic.stop();
                    traffic.wait()?;
                }
            }
            Task::Echo {
                port,
                shape,
                messages,
            } => echo(self.connect(port, &shape)?, messages)?,
        }
        Ok(Answer::Done)
    }

    fn connect(&self, port: u16, shape: &Shape) -> io::Result<Stream> {
        Stream::connect(&self.pool, Port(port), shape.options(), PATIENCE)
    }
}
