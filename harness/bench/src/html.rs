// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The report as one self-contained HTML file with plots.

use std::fmt::Write;

use anyhow::{anyhow, Result};
use bytesize::ByteSize;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use crate::report::{duration, Report, Row, Spread};
use crate::workload::{Fill, Pages};

const STYLE: &str = include_str!("report.css");
const WIDTH: u32 = 620;
const HEIGHT: u32 = 380;
/// Colours that stay apart for colour-blind readers: Okabe and Ito's.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(150, 110, 60),
];

/// A line of a plot: time against bytes.
struct Series {
    name: String,
    points: Vec<(u64, Spread)>,
}

struct Plot {
    title: String,
    series: Vec<Series>,
}

/// Writes the report as a page.
///
/// # Errors
///
/// If a plot cannot be drawn.
pub fn write(report: &Report) -> Result<String> {
    let environment = &report.environment;
    let mut page = String::new();
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>luo bench</title><style>{STYLE}</style></head><body>\
         <h1>Files across a live update</h1>\
         <p class=\"where\">{} · {} cpus · Linux {} · luo {}</p>",
        escape(&environment.cpu),
        environment.cpus,
        escape(&environment.kernel),
        escape(&environment.luo_version),
    )?;
    for (heading, note, plots) in sections(report) {
        if plots.is_empty() {
            continue;
        }
        write!(page, "<h2>{heading}</h2><p>{note}</p><div class=\"plots\">")?;
        for plot in &plots {
            page.push_str(&figure(plot)?);
        }
        page.push_str("</div>");
    }
    page.push_str("<h2>All figures</h2>");
    page.push_str(&table(report)?);
    page.push_str("<ul>");
    for remark in report.remarks() {
        write!(page, "<li>{}</li>", escape(&remark))?;
    }
    page.push_str("</ul></body></html>\n");
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Memfds alone are plotted: other files have no size to plot against.
fn sections(report: &Report) -> Vec<(&'static str, &'static str, Vec<Plot>)> {
    let memfds = report.results.iter().filter(|row| row.kind().is_some());
    let rows: Vec<&Row> = memfds.collect();
    vec![
        (
            "Phases against size",
            "What each phase of the update costs as the memfd grows. Points are medians, bars reach from \
             the least to the greatest run; both axes are logarithmic.",
            phases_against_size(&rows),
        ),
        (
            "Dense against sparse",
            "The whole update for the same size, by what is filled: cost should follow the data, not the \
             size.",
            fills_against_each_other(&rows),
        ),
        (
            "Ways against each other",
            "The blackout, in which nobody serves, and the whole update.",
            ways_against_each_other(&rows),
        ),
    ]
}

/// Values of a field in the order they first appear.
fn distinct<T: PartialEq>(rows: &[&Row], field: impl Fn(&Row) -> T) -> Vec<T> {
    let mut values = Vec::new();
    for row in rows {
        let value = field(row);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// Time against size over the rows that `choose` picks.
fn series(
    rows: &[&Row],
    name: String,
    choose: impl Fn(&Row) -> bool,
    time: impl Fn(&Row) -> Spread,
) -> Series {
    let rows = rows.iter().filter(|row| choose(row));
    Series {
        name,
        points: rows.map(|row| (row.size_bytes, time(row))).collect(),
    }
}

fn with_points(series: Vec<Series>) -> Vec<Series> {
    series
        .into_iter()
        .filter(|series| series.points.iter().any(|(_, time)| time.median > 0))
        .collect()
}

/// The fill and page kind that plots with one line a phase or a transport show: the first measured.
fn first_kind(rows: &[&Row]) -> Option<(Fill, Pages)> {
    rows.first()?.kind()
}

fn phases_against_size(rows: &[&Row]) -> Vec<Plot> {
    let Some((fill, pages)) = first_kind(rows) else {
        return Vec::new();
    };
    let plot = |way: String| Plot {
        title: format!("{way}, {fill}, {pages}"),
        series: with_points(
            (0..6)
                .filter_map(|phase| {
                    let name = rows.first()?.phases.in_order()[phase].0;
                    Some(series(
                        rows,
                        name.to_owned(),
                        |row| row.way() == way && row.kind() == Some((fill, pages)),
                        |row| row.phases.in_order()[phase].1,
                    ))
                })
                .collect(),
        ),
    };
    distinct(rows, Row::way).into_iter().map(plot).collect()
}

fn fills_against_each_other(rows: &[&Row]) -> Vec<Plot> {
    let kinds = distinct(rows, |row| row.kind());
    if kinds.len() < 2 {
        return Vec::new();
    }
    let plot = |way: String| Plot {
        title: format!("{way}, whole update"),
        series: kinds
            .iter()
            .flatten()
            .map(|&(fill, pages)| {
                series(
                    rows,
                    format!("{fill}, {pages}"),
                    |row| row.way() == way && row.kind() == Some((fill, pages)),
                    |row| row.phases.total_ns,
                )
            })
            .collect(),
    };
    distinct(rows, Row::way).into_iter().map(plot).collect()
}

fn ways_against_each_other(rows: &[&Row]) -> Vec<Plot> {
    let ways = distinct(rows, Row::way);
    let (Some((fill, pages)), 2..) = (first_kind(rows), ways.len()) else {
        return Vec::new();
    };
    let plot = |title: &str, time: fn(&Row) -> Spread| Plot {
        title: format!("{title}, {fill}, {pages}"),
        series: ways
            .iter()
            .map(|way| {
                series(
                    rows,
                    way.clone(),
                    |row| row.way() == *way && row.kind() == Some((fill, pages)),
                    time,
                )
            })
            .collect(),
    };
    vec![
        plot("blackout", |row| row.phases.blackout_ns),
        plot("whole update", |row| row.phases.total_ns),
    ]
}

fn figure(plot: &Plot) -> Result<String> {
    let mut figure = format!(
        "<figure><figcaption>{}</figcaption><p class=\"legend\">",
        escape(&plot.title)
    );
    for (index, series) in plot.series.iter().enumerate() {
        let RGBColor(red, green, blue) = COLORS[index % COLORS.len()];
        write!(
            figure,
            "<span><i style=\"background:rgb({red},{green},{blue})\"></i>{}</span> ",
            escape(&series.name)
        )?;
    }
    figure.push_str("</p>");
    figure.push_str(&draw(plot).map_err(|error| anyhow!("cannot draw {}: {error}", plot.title))?);
    figure.push_str("</figure>");
    Ok(figure)
}

/// The least power of `base` that is no greater than all values, and the greatest that is no less.
fn bounds(values: impl Iterator<Item = u64> + Clone, base: f64) -> (f64, f64) {
    let least = values.clone().filter(|&value| value > 0).min().unwrap_or(1);
    let greatest = values.max().unwrap_or(1).max(least);
    let (low, high) = ((least as f64).log(base), (greatest as f64).log(base));
    (base.powf(low.floor()), base.powf(high.floor() + 1.0))
}

fn draw(plot: &Plot) -> Result<String, Box<dyn std::error::Error + '_>> {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let (left, right) = bounds(points().map(|(size, _)| *size), 2.0);
    let (bottom, top) = bounds(points().flat_map(|(_, time)| [time.min, time.max]), 10.0);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .margin_right(36)
            .x_label_area_size(28)
            .y_label_area_size(72)
            .build_cartesian_2d(
                (left..right).log_scale().base(2.0),
                (bottom..top).log_scale(),
            )?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .axis_style(BLACK.mix(0.5))
            .label_style(("sans-serif", 13))
            .x_labels(6)
            .y_labels(8)
            .x_label_formatter(&|size| ByteSize(size.round() as u64).display().iec().to_string())
            .y_label_formatter(&|time| duration(time.round() as u64))
            .draw()?;
        for (index, series) in plot.series.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            let at = |size: u64, time: u64| (size as f64, time.max(1) as f64);
            chart.draw_series(LineSeries::new(
                series
                    .points
                    .iter()
                    .map(|&(size, time)| at(size, time.median)),
                color.stroke_width(2),
            ))?;
            for &(size, time) in &series.points {
                chart.draw_series([PathElement::new(
                    vec![at(size, time.min), at(size, time.max)],
                    color,
                )])?;
                chart.draw_series([Circle::new(at(size, time.median), 4, color.filled())])?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}

fn table(report: &Report) -> Result<String> {
    let mut table = String::from(
        "<table><thead><tr><th>files</th><th>transport</th><th>prepare</th><th>freeze</th>\
         <th>handover</th><th>blackout</th><th>retrieve</th><th>finish</th><th>total</th><th>GiB/s</th>\
         <th>metadata</th><th>memory taken</th><th>verified</th></tr></thead><tbody>",
    );
    for row in &report.results {
        write!(table, "<tr><td>{}</td><td>{}</td>", row.name(), row.way())?;
        let phases = row.phases.in_order().map(|(_, spread)| spread);
        for spread in phases.into_iter().chain([row.phases.total_ns]) {
            write!(
                table,
                "<td>{}<small>{}–{}</small></td>",
                duration(spread.median),
                duration(spread.min),
                duration(spread.max)
            )?;
        }
        let verified = match &row.mismatch {
            None => "<td class=\"yes\">yes</td>".to_owned(),
            Some(mismatch) => format!("<td class=\"no\">no: {}</td>", escape(mismatch)),
        };
        write!(
            table,
            "<td>{}</td><td>{}</td><td>{}</td>{verified}</tr>",
            row.of_data(|| format!("{:.1}", row.gib_per_second())),
            ByteSize(row.metadata_bytes),
            ByteSize(row.extra_memory_bytes)
        )?;
    }
    table.push_str("</tbody></table>");
    Ok(table)
}
