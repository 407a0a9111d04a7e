//! A plot of ratios as bars, as SVG.

use anyhow::{Result, anyhow};
use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    element::{EmptyElement, PathElement, Rectangle, Text},
    prelude::{IntoDrawingArea, SVGBackend},
    style::{
        Color, IntoFont, IntoTextStyle, RGBColor, ShapeStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};
use std::path::Path;

/// Of Okabe and Ito: told apart by colour-blind eyes as well.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(120, 120, 120),
];
const WIDTH: u32 = 800;
const BAR_HEIGHT: u32 = 13;
/// Of caption, axis and margins.
const OTHER_HEIGHT: u32 = 110;
/// Longer bars end here; what they stand for is written at their ends.
const LONGEST: f64 = 5.0;

/// Bars that stand together, one for each tool that has a figure.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<(&'static str, f64)>,
}

/// Draws the groups below each other.
pub(super) fn draw(path: &Path, title: &str, across: &str, groups: &[Group]) -> Result<()> {
    let drawn = draw_with(path, title, across, groups);
    drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw_with(
    path: &Path,
    title: &str,
    across: &str,
    groups: &[Group],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut tools: Vec<&str> = Vec::new();
    for (tool, _) in groups.iter().flat_map(|group| &group.bars) {
        if !tools.contains(tool) {
            tools.push(tool);
        }
    }
    // A bar is one high, and there is room for another between groups.
    let rows: usize = groups.iter().map(|group| group.bars.len() + 1).sum();
    let rows = u32::try_from(rows)?;
    let all = groups.iter().flat_map(|group| &group.bars);
    let greatest = all.map(|bar| bar.1.min(LONGEST)).fold(1.0, f64::max);
    let (right, bottom) = (greatest * 1.35, f64::from(rows));

    let root = SVGBackend::new(path, (WIDTH, rows * BAR_HEIGHT + OTHER_HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .caption(title, ("sans-serif", 18).into_font())
        .x_label_area_size(48)
        .y_label_area_size(190)
        .build_cartesian_2d(0.0..right, bottom..0.0)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(0)
        .y_labels(0)
        .x_desc(across)
        .axis_desc_style(("sans-serif", 15))
        .draw()?;
    let label = ("sans-serif", 14).into_text_style(&root);
    let below = label.pos(Pos::new(HPos::Center, VPos::Top));
    let left_of = label.pos(Pos::new(HPos::Right, VPos::Center));
    let right_of = ("sans-serif", 12)
        .into_text_style(&root)
        .pos(Pos::new(HPos::Left, VPos::Center));
    for step in (0..20_u8).map(|step| f64::from(step) * 0.5) {
        if step > greatest {
            break;
        }
        let grey = if step == 1.0 { 90 } else { 225 };
        let line = ShapeStyle::from(&RGBColor(grey, grey, grey));
        chart.draw_series([PathElement::new([(step, bottom), (step, 0.0)], line)])?;
        let foot = EmptyElement::at((step, bottom));
        chart.draw_series([foot + Text::new(format!("{step:.1}"), (0, 8), below.clone())])?;
    }
    let mut bars = Vec::new();
    let mut top = 0.5;
    for group in groups {
        let height = f64::from(u32::try_from(group.bars.len())?);
        let side = EmptyElement::at((0.0, top + height / 2.0));
        chart.draw_series([side + Text::new(group.name.clone(), (-8, 0), left_of.clone())])?;
        for (tool, value) in &group.bars {
            bars.push((*tool, *value, top));
            top += 1.0;
        }
        top += 1.0;
    }
    for (tool, colour) in tools.iter().zip(COLOURS.iter().cycle()) {
        let style = colour.filled();
        let of_tool = bars.iter().filter(|bar| bar.0 == *tool);
        let shapes = of_tool.clone().map(|(_, value, top)| {
            Rectangle::new([(0.0, *top), (value.min(LONGEST), top + 0.9)], style)
        });
        chart
            .draw_series(shapes)?
            .label(*tool)
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], style));
        chart.draw_series(of_tool.map(|(_, value, top)| {
            let end = EmptyElement::at((value.min(LONGEST), top + 0.45));
            end + Text::new(format!("{value:.2}"), (4, 0), right_of.clone())
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font(("sans-serif", 14))
        .draw()?;
    root.present()?;
    Ok(())
}
