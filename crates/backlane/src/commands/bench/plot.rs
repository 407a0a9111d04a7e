//! Plots of what was measured, as SVG.

use super::series::{Distribution, FramePoint};
use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    element::{Circle, EmptyElement, PathElement, Text},
    prelude::{IntoDrawingArea, SVGBackend},
    series::LineSeries,
    style::{
        Color, IntoFont, IntoTextStyle, RGBColor, ShapeStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};
use std::path::Path;

/// Of Okabe and Ito: told apart by colour-blind eyes as well.
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(120, 120, 120),
];
const SIZE: (u32, u32) = (800, 480);

/// A line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// What the axes say and span.
struct Axes {
    title: String,
    across: &'static str,
    up: &'static str,
    x: [f64; 2],
    y: [f64; 2],
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    legend: SeriesLabelPosition,
}

/// Where an axis is labelled, and how.
type Tick = (f64, String);

/// Throughput by frame size: stream and raw.
pub(super) fn frames(path: &Path, points: &[FramePoint], devices: &str) -> Result<()> {
    let line = |name: &str, value: &dyn Fn(&FramePoint) -> f64| Line {
        name: name.to_owned(),
        points: points
            .iter()
            .map(|point| (log2(point.frame_bytes), value(point) / 1e9))
            .collect(),
    };
    let lines = [
        line("stream, sealed with AES-256-GCM", &|point| point.stream),
        line("raw, by the yardstick", &|point| point.raw),
    ];
    let greatest = greatest(&lines);
    let ticks = points.iter().map(|point| {
        let size = crate::output::bytes(point.frame_bytes as u64).replace(".0", "");
        (log2(point.frame_bytes), size)
    });
    let x_ticks: Vec<_> = ticks.collect();
    let ends = [x_ticks.first(), x_ticks.last()].map(|tick| tick.map_or(0.0, |tick| tick.0));
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0].into_iter();
    let step = step
        .rev()
        .find(|step| greatest / step >= 5.0)
        .unwrap_or(0.1);
    let steps = (0..100_u8).map(|count| f64::from(count) * step);
    let y_ticks = steps.take_while(|at| *at <= greatest * 1.1);
    draw(
        path,
        &Axes {
            title: format!("Throughput by frame size ({devices})"),
            across: "frame",
            up: "GB/s, one way",
            x: [ends[0] - 0.3, ends[1] + 0.3],
            y: [0.0, greatest * 1.1],
            x_ticks,
            y_ticks: y_ticks.map(|at| (at, format!("{at:.1}"))).collect(),
            legend: SeriesLabelPosition::LowerRight,
        },
        &lines,
    )
}

/// How many messages took how long, and what raw takes.
pub(super) fn latency(
    path: &Path,
    distributions: &[Distribution],
    raw_us: Option<f64>,
    devices: &str,
) -> Result<()> {
    let line = |distribution: &Distribution| Line {
        name: distribution.name.clone(),
        points: distribution
            .points
            .iter()
            .map(|point| (nines(point.share), point.us.max(1.0).log10()))
            .collect(),
    };
    let mut lines: Vec<_> = distributions.iter().map(line).collect();
    if let Some(us) = raw_us {
        lines.push(Line {
            name: "raw write + read, medians (fio)".to_owned(),
            points: vec![(0.0, us.log10()), (3.1, us.log10())],
        });
    }
    let heights = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.1);
    let least = heights.fold(f64::INFINITY, f64::min);
    let y = [least - 0.1, greatest(&lines) + 0.5];
    let decades = (0..7_u8).map(|decade| 10.0_f64.powi(i32::from(decade)));
    let y_ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * decade));
    let shares = [
        ("50 %", 0.5),
        ("75 %", 0.75),
        ("90 %", 0.9),
        ("99 %", 0.99),
        ("99.9 %", 0.999),
    ];
    draw(
        path,
        &Axes {
            title: format!("A message of 4 KiB, one way ({devices})"),
            across: "share of the messages that took at most so long",
            up: "µs",
            x: [0.0, 3.1],
            y,
            x_ticks: shares
                .map(|(name, share)| (nines(share), name.to_owned()))
                .into(),
            y_ticks: y_ticks
                .map(|us| (us.log10(), format!("{us:.0}")))
                .filter(|tick| (y[0]..y[1]).contains(&tick.0))
                .collect(),
            legend: SeriesLabelPosition::UpperLeft,
        },
        &lines,
    )
}

fn greatest(lines: &[Line]) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points);
    points.map(|point| point.1).fold(0.0, f64::max)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes of frames are small powers of two"
)]
fn log2(bytes: usize) -> f64 {
    (bytes as f64).log2()
}

/// 0.9 is one, 0.99 two: the tail is what one wants to see.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

fn draw(path: &Path, axes: &Axes, lines: &[Line]) -> Result<()> {
    let drawn = draw_with(path, axes, lines);
    drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_with(
    path: &Path,
    axes: &Axes,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let ([left, right], [bottom, top]) = (axes.x, axes.y);
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .caption(&axes.title, ("sans-serif", 18).into_font())
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(left..right, bottom..top)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(0)
        .y_labels(0)
        .x_desc(axes.across)
        .y_desc(axes.up)
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    let faint = ShapeStyle::from(&RGBColor(225, 225, 225));
    let label = ("sans-serif", 14).into_text_style(&root);
    let below = label.pos(Pos::new(HPos::Center, VPos::Top));
    let beside = label.pos(Pos::new(HPos::Right, VPos::Center));
    for (at, name) in &axes.x_ticks {
        chart.draw_series([PathElement::new([(*at, bottom), (*at, top)], faint)])?;
        let foot = EmptyElement::at((*at, bottom));
        chart.draw_series([foot + Text::new(name.clone(), (0, 8), below.clone())])?;
    }
    for (at, name) in &axes.y_ticks {
        chart.draw_series([PathElement::new([(left, *at), (right, *at)], faint)])?;
        let foot = EmptyElement::at((left, *at));
        chart.draw_series([foot + Text::new(name.clone(), (-8, 0), beside.clone())])?;
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let style = ShapeStyle::from(colour).stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], style));
        if (3..20).contains(&line.points.len()) {
            let dots = line
                .points
                .iter()
                .map(|point| Circle::new(*point, 4, colour.filled()));
            chart.draw_series(dots)?;
        }
    }
    chart
        .configure_series_labels()
        .position(axes.legend.clone())
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}
