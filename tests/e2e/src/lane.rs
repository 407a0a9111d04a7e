//! Two network namespaces, a server's and a client's, and the wire between them: nothing else leads in or out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::thread::move_into_link_name_space;

use crate::output;

/// One end of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the server runs, at [`Side::address`].
    Server,
    /// Where the clients run.
    Client,
}

/// What the wire can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Megabits a second in each direction, enforced by the kernel's token bucket; not limited without it.
    pub mbit: Option<u32>,
}

impl Wire {
    /// The wire that most machines have.
    pub const GIGABIT: Self = Self { mbit: Some(1000) };
    /// A wire so slow that whatever crossed it in bulk can be told by the time.
    pub const SLOW: Self = Self { mbit: Some(20) };

    /// Bytes a second in one direction; `None` where it isn't limited.
    #[must_use]
    pub fn bytes_per_second(self) -> Option<u64> {
        self.mbit.map(|mbit| u64::from(mbit) * 1_000_000 / 8)
    }
}

/// Two namespaces joined by a pair of virtual interfaces, both called `lane`.
#[derive(Debug)]
pub struct Lane {
    server: Namespace,
    client: Namespace,
}

impl Side {
    /// The address of this end.
    #[must_use]
    pub fn address(self) -> &'static str {
        match self {
            Self::Server => "10.77.0.1",
            Self::Client => "10.77.0.2",
        }
    }
}

impl Lane {
    /// Lays a wire.
    ///
    /// # Errors
    /// When the kernel refuses any part of it.
    pub fn new(wire: Wire) -> Result<Self> {
        crate::sweep::sweep();
        let lane = Self {
            server: Namespace::new("server")?,
            client: Namespace::new("client")?,
        };
        let [server, client] = [&lane.server.0, &lane.client.0];
        ip(&[
            "link", "add", "lane", "netns", server, "type", "veth", "peer", "name", "lane",
            "netns", client,
        ])?;
        for side in [Side::Server, Side::Client] {
            let name = lane.namespace(side);
            ip(&["-n", name, "address", "add", &prefixed(side), "dev", "lane"])?;
            ip(&["-n", name, "link", "set", "lane", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            if let Some(mbit) = wire.mbit {
                let rate = format!("{mbit}mbit");
                output(
                    Command::new("tc")
                        .args(["-n", name, "qdisc", "add", "dev", "lane", "root"])
                        .args(["tbf", "rate", &rate, "burst", "256k", "latency", "50ms"]),
                )?;
            }
        }
        Ok(lane)
    }

    /// A command that will run on one side; what it runs has the process number of what is started.
    pub fn command(&self, side: Side, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.namespace(side)])
            .arg(program);
        command
    }

    /// Moves the calling thread to one side: whatever socket it makes from now on is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self, side: Side) -> Result<()> {
        let path = Path::new("/run/netns").join(self.namespace(side));
        let shown = || format!("entering {}", path.display());
        let namespace = File::open(&path).with_context(shown)?;
        move_into_link_name_space(namespace.as_fd(), None).with_context(shown)
    }

    /// Bytes that have crossed the wire, both ways, by the counters of the client's interface.
    ///
    /// # Errors
    /// When the counters can't be read.
    pub fn bytes(&self) -> Result<u64> {
        let statistics =
            ["tx_bytes", "rx_bytes"].map(|name| format!("/sys/class/net/lane/statistics/{name}"));
        let text = output(self.command(Side::Client, "cat").args(statistics))?;
        let mut sum = 0;
        for line in text.lines() {
            sum += line
                .trim()
                .parse::<u64>()
                .context("a counter of the interface")?;
        }
        Ok(sum)
    }

    /// Cuts the wire: packets get lost in silence, as with a broken switch.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self) -> Result<()> {
        ip(&["-n", &self.client.0, "link", "set", "lane", "down"])
    }

    /// Mends the wire.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mend(&self) -> Result<()> {
        ip(&["-n", &self.client.0, "link", "set", "lane", "up"])
    }

    /// Takes the server's address away: what comes for it finds nobody.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_address(&self) -> Result<()> {
        self.server_address("del")
    }

    /// Gives the server its address again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&self) -> Result<()> {
        self.server_address("add")
    }

    fn server_address(&self, verb: &str) -> Result<()> {
        let [name, address] = [&self.server.0, &prefixed(Side::Server)];
        ip(&["-n", name, "address", verb, address, "dev", "lane"])
    }

    /// Loses all that the server sends, in silence; what the client sends arrives. The server's packets get the address
    /// of an interface that isn't there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lose_answers(&self) -> Result<()> {
        let nobody = ["lladdr", "02:00:00:00:00:01", "dev", "lane", "nud"];
        self.neighbour("replace", &[&nobody[..], &["permanent"]].concat())
    }

    /// Ends [`Lane::lose_answers`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn deliver_answers(&self) -> Result<()> {
        self.neighbour("del", &["dev", "lane"])
    }

    fn neighbour(&self, verb: &str, more: &[&str]) -> Result<()> {
        let to = ["-n", &self.server.0, "neigh", verb, Side::Client.address()];
        ip(&[&to[..], more].concat())
    }

    /// Resets every TCP connection that crosses the wire.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset_connections(&self) -> Result<()> {
        let mut ss = self.command(Side::Server, "ss");
        ss.args([
            "--kill",
            "--tcp",
            "--numeric",
            "dst",
            Side::Client.address(),
        ]);
        output(&mut ss).map(drop)
    }

    /// The name of a side's namespace, for tools that want it.
    #[must_use]
    pub fn namespace(&self, side: Side) -> &str {
        match side {
            Side::Server => &self.server.0,
            Side::Client => &self.client.0,
        }
    }
}

/// A network namespace, deleted on drop; its end of the wire, and thus the wire, goes with it.
#[derive(Debug)]
struct Namespace(String);

impl Namespace {
    fn new(what: &str) -> Result<Self> {
        let name = crate::sweep::unique(what);
        ip(&["netns", "add", &name])?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(why) = ip(&["netns", "del", &self.0]) {
            eprintln!("left behind: {why:#}");
        }
    }
}

fn prefixed(side: Side) -> String {
    format!("{}/24", side.address())
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}
