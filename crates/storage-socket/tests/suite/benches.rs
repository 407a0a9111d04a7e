//! The two processes of a bench: the test is one, a child that it starts is the other.

use crate::{media::directory, work::PATIENCE};
use std::{env, process::Command, time::Duration};
use storage_socket::bench::{
    BenchOptions, MESSAGE_BYTES, News, Pair, RawOptions, Seal, Shape, Way, child, fill, raw,
};

/// Not a test of its own: what the other process does.
#[test]
fn child_of_a_bench() {
    if env::var_os("STORAGE_SOCKET_BENCH").is_some() {
        let ended = child();
        // The harness would write to standard output, where the answers go.
        std::process::exit(i32::from(ended.is_err()));
    }
}

fn start(options: &BenchOptions, news: News) -> Pair {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "benches::child_of_a_bench",
            "--nocapture",
            "--quiet",
        ])
        .env("STORAGE_SOCKET_BENCH", "1");
    Pair::start(options, news, &mut command).unwrap()
}

fn options(directory: &tempfile::TempDir, devices: usize) -> BenchOptions {
    let path = |index| directory.path().join(format!("device-{index}"));
    let locks = directory.path().join("locks");
    let mut options = BenchOptions::new((0..devices).map(path).collect(), locks);
    options.format.file_bytes = Some(64 << 20);
    options
}

#[test]
fn bench_counts_what_both_processes_move_in_each_direction() {
    let directory = directory();
    let options = options(&directory, 2);
    let mut pair = start(&options, News::Polled);
    let shape = Shape {
        window_bytes: 4 << 20,
        ..Shape::new(Seal::Aes256Gcm)
    };
    for way in [Way::ToCoordinator, Way::ToMember, Way::Both] {
        let report = pair.flow(&shape, way, Duration::from_millis(50)).unwrap();
        assert_eq!(
            report.coordinator.received > 0,
            way != Way::ToMember,
            "{way:?}"
        );
        assert_eq!(
            report.member.received > 0,
            way != Way::ToCoordinator,
            "{way:?}"
        );
        assert!(report.bytes_per_s() > 0.0 && report.cpu_seconds_per_gib() > 0.0);
        assert!(report.device_bytes().into_iter().all(|bytes| bytes > 0));
        let bound = 2 * shape.options().buffer_bytes_max(2);
        assert!(report.buffer_bytes > 0 && report.buffer_bytes <= bound as u64);
    }
    pair.finish().unwrap();
}

#[test]
fn bench_times_every_message_whichever_way_news_comes() {
    let directory = directory();
    let options = options(&directory, 1);
    let shape = Shape {
        window_bytes: 4 << 20,
        ..Shape::new(Seal::Checksum)
    };
    assert!(MESSAGE_BYTES < shape.frame_bytes);
    for news in [News::Rung, News::Polled, News::PolledHot] {
        let mut pair = start(&options, news);
        let halves = pair.latency(&shape, 20).unwrap();
        assert_eq!(halves.len(), 20, "{news:?}");
        let patience = PATIENCE.as_secs_f64() * 1e6;
        assert!(halves.iter().all(|us| *us > 0.0 && *us < patience));
        pair.finish().unwrap();
    }
}

#[test]
fn raw_reads_and_writes_at_once_what_was_filled() {
    let directory = directory();
    let options = options(&directory, 1);
    storage_socket::format(&options.devices, &options.format).unwrap();
    let how = RawOptions {
        engine: options.engine,
        frame_bytes: 1 << 20,
        depth: 2,
        window_bytes: 8 << 20,
        duration: Duration::from_millis(20),
    };
    fill(&options.devices, &how).unwrap();
    assert!(raw(&options.devices, &how).unwrap() > 0.0);
}
