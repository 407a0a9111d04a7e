//! The clients of the `echo` example as tasks: each sends its word over a stream of its own, and prints what comes back.
//!
//! ```text
//! echo_tokio DEVICE LOCKS WORDS...
//! ```

use std::{error::Error, time::Duration};
use storage_socket::{Pool, PoolOptions, Port, Protection, Role, SlotIndex, Stream, StreamOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

const PORT: Port = Port(7);
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(device), Some(locks)) = (arguments.next(), arguments.next()) else {
        return Err("echo_tokio DEVICE LOCKS WORDS...".into());
    };
    let slots = (0..4).map(SlotIndex).collect();
    let how = PoolOptions::new(Role::Member { slots }, "here", locks.as_ref());
    // Opening and joining block: a program that has other tasks does this on a thread for such work.
    let pool = Pool::open(&[device.into()], how)?;
    pool.wait_ready(PATIENCE)?;
    let mut asking = JoinSet::new();
    for word in arguments {
        asking.spawn(ask(pool.clone(), word));
    }
    while let Some(answer) = asking.join_next().await {
        println!("{}", answer??);
    }
    Ok(())
}

async fn ask(pool: Pool, word: String) -> std::io::Result<String> {
    let mut options = StreamOptions::new(Protection::Checksum).with_frame_bytes(64 << 10);
    options.window_bytes = 4 << 20;
    let mut stream = Stream::connect_async(&pool, PORT, options, PATIENCE).await?;
    stream.write_all(word.as_bytes()).await?;
    AsyncWriteExt::shutdown(&mut stream).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
