//! The same streams under tokio.

use crate::{
    media::patient,
    work::{Ground, PATIENCE, sealed},
};
use storage_socket::{EngineChoice, ListenProtection, Listener, Port, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BYTES: usize = 12 << 20;

#[test]
fn tasks_copy_both_ways_on_one_thread() {
    let ground = Ground::new(1, None, 64 << 20, patient()).unwrap();
    let server = ground.coordinator(EngineChoice::Auto);
    let client = ground.member(EngineChoice::Auto);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = Listener::bind_async(&server, Port(0), ListenProtection::Sealed)
            .await
            .unwrap();
        let port = listener.port();
        let echo = async {
            let incoming = listener.accept_async().await.unwrap();
            let stream = incoming.accept_async(sealed()).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        };
        let asking = async {
            let stream = Stream::connect_async(&client, port, sealed(), PATIENCE).await;
            let (mut read, mut write) = stream.unwrap().into_split();
            let sent: Vec<u8> = (0..BYTES / 4)
                .flat_map(|number| u32::try_from(number).unwrap().to_le_bytes())
                .collect();
            let sending = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let (_, count) = tokio::join!(sending, read.read_to_end(&mut heard));
            assert_eq!(count.unwrap(), BYTES);
            assert!(heard == sent);
        };
        tokio::join!(echo, asking);
    });
}
