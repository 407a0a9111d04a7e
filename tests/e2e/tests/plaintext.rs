//! Who records the wire, copies the pool, or has the server's disk looks for anything that was sealed, and for any key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use backlane_e2e::{Client, Recording, Setup, Side, System, output, plant, ready_with, same};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use fidelity::Random;

const MIB: u64 = 1 << 20;

/// What each route carries, both ways.
const TREE_BYTES: u64 = 24 * MIB;

/// A pool that a job goes round, so small that it is searched in no time.
const POOL_BYTES: u64 = 32 * MIB;

/// Bytes of what is looked for: chance gives none of them.
const PIECE: usize = 16;

/// A piece of every so many bytes of the files is looked for.
const STRIDE: usize = 64;

/// What must not be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Secret {
    Contents,
    FileName,
    Password,
    MasterKey,
    PrivateKey,
    JoinToken,
}

/// Pieces of secrets.
struct Pieces {
    known: HashMap<[u8; PIECE], Secret>,
    /// The first three bytes of all of them, a bit each.
    begins: Vec<u64>,
}

impl Pieces {
    fn new() -> Self {
        Self {
            known: HashMap::new(),
            begins: vec![0; (1 << 24) / 64],
        }
    }

    /// Looks for these bytes from now on, in pieces that begin every so many bytes.
    fn add(&mut self, secret: Secret, bytes: &[u8], stride: usize) -> Result<()> {
        ensure!(bytes.len() >= PIECE, "{secret:?}: {} bytes", bytes.len());
        for piece in bytes.windows(PIECE).step_by(stride) {
            let piece: [u8; PIECE] = piece.try_into()?;
            self.known.insert(piece, secret);
            let begin = begin(&piece);
            self.begins[begin / 64] |= 1 << (begin % 64);
        }
        Ok(())
    }

    /// Which secrets are there.
    fn seen(&self, place: &[u8]) -> BTreeSet<Secret> {
        place
            .windows(PIECE)
            .filter(|window| {
                let begin = begin(window);
                self.begins[begin / 64] & (1 << (begin % 64)) != 0
            })
            .filter_map(|window| self.known.get(window).copied())
            .collect()
    }

    /// Fails where any secret is seen.
    fn unseen(&self, what: &str, place: &[u8]) -> Result<()> {
        ensure!(!place.is_empty(), "{what} is empty");
        let seen = self.seen(place);
        ensure!(seen.is_empty(), "{seen:?} can be read in {what}");
        Ok(())
    }

    /// Fails unless a single piece of each secret would have been seen here.
    fn has_teeth(&self, place: &[u8]) -> Result<()> {
        let mut one_of_each = BTreeMap::new();
        for (piece, secret) in &self.known {
            one_of_each.insert(*secret, piece);
        }
        ensure!(one_of_each.len() == 6, "{:?}", one_of_each.keys());
        for (secret, piece) in one_of_each {
            let mut copy = place.to_vec();
            let at = copy.len() / 2 + 1;
            copy[at..at + PIECE].copy_from_slice(piece);
            ensure!(self.seen(&copy) == BTreeSet::from([secret]), "{secret:?}");
        }
        Ok(())
    }
}

fn begin(bytes: &[u8]) -> usize {
    usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2])
}

/// Files with contents that can't be compressed, under names that nothing else has.
fn tree(dir: &Path, seed: u64, pieces: &mut Pieces) -> Result<()> {
    plant(dir, TREE_BYTES, seed)?;
    let mut random = Random::new(seed);
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        pieces.add(Secret::Contents, &fs::read(&path)?, STRIDE)?;
        let name = format!("{:016x}{:016x}", random.next_u64(), random.next_u64());
        fs::rename(&path, dir.join(&name))?;
        pieces.add(Secret::FileName, name.as_bytes(), PIECE)?;
    }
    Ok(())
}

/// The number that is the secret of a private key in PKCS #8: behind this tag and length, of 32 bytes.
fn private_number(path: &Path) -> Result<Vec<u8>> {
    const TAG: [u8; 5] = [2, 1, 1, 4, 32];
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with("-----"));
    let der = BASE64_STANDARD.decode(lines.collect::<String>())?;
    let at = der.windows(TAG.len()).position(|part| part == TAG);
    let at = at.with_context(|| format!("no private number in {}", path.display()))? + TAG.len();
    Ok(der[at..at + 32].to_vec())
}

/// The keys of a client and of the server, and what opens the client's repository.
fn keys(system: &System, client: &Client, token: &str, pieces: &mut Pieces) -> Result<()> {
    for key in [
        client.state.join("host.key"),
        system.path("server/server.key"),
        system.path("server/ca.key"),
    ] {
        pieces.add(Secret::PrivateKey, &private_number(&key)?, PIECE)?;
        // As text, behind the line that is the same in all of them.
        let text = fs::read_to_string(&key)?;
        let line = text.lines().nth(1).context("a key has a second line")?;
        pieces.add(Secret::PrivateKey, &line.as_bytes()[48..], PIECE)?;
    }
    // Version and authority stand before the secret of a token, and 32 bytes of it are that.
    let word = token.trim().strip_prefix("backlane-join-");
    let word = word.context("a join token")?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(word)?;
    pieces.add(Secret::JoinToken, &payload[33..65], PIECE)?;
    pieces.add(Secret::JoinToken, &word.as_bytes()[44..86], PIECE)?;
    Ok(())
}

/// What opens the repository, as restic says it.
fn master_key(system: &System, client: &Client, pieces: &mut Pieces) -> Result<()> {
    let password = fs::read_to_string(&client.key_file)?;
    pieces.add(Secret::Password, password.trim().as_bytes(), 1)?;
    let mut restic = Command::new("restic");
    restic.arg("--repo").arg(system.repository(client)?);
    restic.arg("--password-file").arg(&client.key_file);
    restic.args(["--no-lock", "--no-cache", "cat", "masterkey"]);
    let shown: serde_json::Value = serde_json::from_str(&output(&mut restic)?)?;
    for part in [&shown["encrypt"], &shown["mac"]["k"], &shown["mac"]["r"]] {
        let text = part.as_str().with_context(|| "a part of the master key")?;
        pieces.add(Secret::MasterKey, text.as_bytes(), 1)?;
        pieces.add(Secret::MasterKey, &BASE64_STANDARD.decode(text)?, 1)?;
    }
    Ok(())
}

/// Every file below a directory, or beside others with this beginning.
fn files(dir: &Path, begins: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if begins.is_empty() {
                found.extend(files(&entry.path(), "")?);
            }
        } else if entry.file_name().to_string_lossy().starts_with(begins) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The pool as somebody copies it who sees the disk. Zeros are left out, which no secret has.
fn image(system: &System) -> Result<Vec<u8>> {
    let image = fs::read(system.devices[0].file())?;
    let blocks = image
        .chunks(4096)
        .filter(|block| block.iter().any(|byte| *byte != 0));
    Ok(blocks.flatten().copied().collect())
}

/// Frames in an image.
fn frames(image: &[u8]) -> usize {
    image
        .chunks(4096)
        .filter(|block| block.starts_with(b"BLfr"))
        .count()
}

/// Backs up and restores by one route while the pool is copied again and again; returns all copies.
fn jobs(system: &System, client: &Client, source: &Path, route: &str) -> Result<Vec<Vec<u8>>> {
    let target = system.path(format!("target-{route}"));
    let snapshot = format!("latest:{}", source.display());
    let mut images = Vec::new();
    for words in [
        vec!["backup".into(), source.as_os_str().to_owned()],
        vec![
            "restore".into(),
            snapshot.into(),
            "--target".into(),
            target.clone().into(),
        ],
    ] {
        let more = ["-vv", "--route", route].map(Into::into);
        let mut job = system.start(client, words.into_iter().chain(more))?;
        while job.is_running()? {
            images.push(image(system)?);
        }
        job.wait()?.success()?;
    }
    images.push(image(system)?);
    same(source, &target)?;
    Ok(images)
}

#[test]
fn nothing_sealed_and_no_key_is_on_the_wire_in_the_pool_or_on_the_servers_disk() -> Result<()> {
    if !ready_with(&["restic", "bash"]) {
        return Ok(());
    }
    let mut system = System::new(&Setup {
        pool_bytes: POOL_BYTES,
        ..Setup::default()
    })?;
    let mut pieces = Pieces::new();
    let recording = Recording::start(&system.lane, Side::Server)?;
    let before = system.lane.bytes()?;
    let token = system.token("alpha", &[])?;
    let (client, joined) = system.join("alpha", &token, &system.at_client())?;
    joined.success()?;
    keys(&system, &client, &token, &mut pieces)?;
    let mut images = Vec::new();
    for (seed, route) in [(1, "require-storage"), (2, "network")] {
        let source = system.path(format!("source-{route}"));
        tree(&source, seed, &mut pieces)?;
        images.extend(jobs(&system, &client, &source, route)?);
    }
    master_key(&system, &client, &mut pieces)?;
    // That everything is heard: the counters of the wire, and what is said in the clear.
    let crossed = system.lane.bytes()? - before;
    let spoken = format!("echo {token} > /dev/udp/{}/9", Side::Server.address());
    output(
        system
            .lane
            .command(Side::Client, "bash")
            .args(["-c", &spoken]),
    )?;
    let wire = recording.stop()?;
    ensure!(
        pieces.seen(&wire) == BTreeSet::from([Secret::JoinToken]),
        "what was said in the clear"
    );
    let said = wire
        .windows(token.len())
        .position(|part| part == token.as_bytes());
    let mut wire = wire;
    wire.truncate(said.context("it was said as a whole")?);
    let recorded = wire.len() as u64;
    println!("{crossed} bytes crossed the wire, {recorded} were recorded");
    // Packets that the kernel has put together are recorded with fewer headers than are counted.
    ensure!(
        recorded > crossed / 10 * 9 && recorded > 2 * TREE_BYTES,
        "{recorded} of {crossed} bytes"
    );

    pieces.has_teeth(&wire)?;
    pieces.unseen("what was recorded on the wire", &wire)?;
    let most = images.iter().max_by_key(|image| frames(image));
    let most = most.context("an image")?;
    println!(
        "{} images of the pool, with up to {} frames",
        images.len(),
        frames(most)
    );
    ensure!(frames(most) > 8, "{} frames", frames(most));
    pieces.has_teeth(most)?;
    for (number, image) in images.iter().enumerate() {
        pieces.unseen(&format!("image {number} of the pool"), image)?;
    }
    let server = system.path("server");
    let mut places = files(&system.path("objects"), "")?;
    ensure!(places.len() > 8, "{places:?}");
    for begins in ["server.db", "audit"] {
        let found = files(&server, begins)?;
        ensure!(!found.is_empty(), "no {begins}");
        places.extend(found);
    }
    for place in places {
        let bytes = fs::read(&place)?;
        if !bytes.is_empty() {
            pieces.unseen(&place.display().to_string(), &bytes)?;
        }
    }
    let said = system.server()?.said();
    pieces.unseen("the server's log", said.as_bytes())
}
