//! Reads one object of archived WAL without server or client: `read-wal MASTERKEY.json OBJECT > FILE`.
//!
//! `restic cat masterkey` prints the first file; the object is a file below `wal/` in a host's repository, under its own
//! name and directories.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use backlane_proto::WalName;
use backlane_repo::wal::WalKey;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [key, object] = &arguments[..] else {
        return Err("usage: read-wal MASTERKEY.json OBJECT > FILE".into());
    };
    let key = WalKey::from_master_key(&std::fs::read(key)?)
        .ok_or("this is no master key as `restic cat masterkey` prints it")?;
    let path = Path::new(object).canonicalize()?;
    let parts: Vec<_> = path.iter().rev().take(4).collect();
    let parts = parts.iter().rev().filter_map(|part| part.to_str());
    let name: WalName = parts.collect::<Vec<_>>().join("/").parse()?;
    let file = key.open(name, &std::fs::read(&path)?)?;
    std::io::stdout().write_all(&file)?;
    Ok(())
}
