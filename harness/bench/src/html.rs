// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0-only
//! The report as one self-contained HTML file with plots.

use std::fmt::Write;

use anyhow::{anyhow, Result};
use bytesize::ByteSize;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use crate::format::duration;
use crate::phase::Phase;
use crate::report::{Report, Row};
use crate::scale;
use crate::spread::Spread;
use crate::subject::fill::Fill;
use crate::subject::pages::Pages;
use crate::text::sentences;

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
struct Curve {
    name: String,
    points: Vec<(u64, Spread)>,
}

struct Plot {
    title: String,
    curves: Vec<Curve>,
}

/// The report as a page.
///
/// # Errors
///
/// If a plot cannot be drawn.
pub fn page(report: &Report) -> Result<String> {
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
    page.push_str("<ul>");
    for sentence in sentences(report) {
        write!(page, "<li>{}</li>", escape(&sentence))?;
    }
    page.push_str("</ul>");
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
    page.push_str("</body></html>\n");
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Memfds alone are plotted: other files have no size to plot against.
fn sections(report: &Report) -> Vec<(&'static str, &'static str, Vec<Plot>)> {
    let memfds = report
        .results
        .iter()
        .filter(|row| row.case.kind().is_some());
    // Other numbers of files would be other curves.
    let files = memfds.clone().next().map_or(1, |row| row.case.files);
    let rows: Vec<&Row> = memfds.filter(|row| row.case.files == files).collect();
    vec![
        (
            "Downtime against size",
            "How long the workload does not run as the memfd grows, by what is filled: \
             freeze, handover, blackout and retrieve together. Points are medians, bars reach from \
             the least to the greatest run; both axes are logarithmic.",
            downtime_against_size(&rows),
        ),
        (
            "Phases against size",
            "What each phase of the update costs as the memfd grows. Prepare and finish \
             happen while the workload runs.",
            phases_against_size(&rows),
        ),
        (
            "Cost of a GiB",
            "What each GiB of data costs: where the cost goes by the data alone, the line is flat. \
             What is the same for any size, such as the boot of a kernel, is more for each GiB of \
             a small memfd.",
            cost_of_a_gib(report),
        ),
        (
            "Ways against each other",
            "The downtime of each way, and the blackout, which is a part of it.",
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

/// Time against size over the rows of a way and a kind.
fn curve(
    rows: &[&Row],
    name: String,
    (way, kind): (&str, (Fill, Pages)),
    time: impl Fn(&Row) -> &Spread,
) -> Curve {
    let chosen = rows
        .iter()
        .filter(|row| row.way() == way && row.case.kind() == Some(kind));
    Curve {
        name,
        points: chosen
            .map(|row| (row.case.size_bytes, time(row).clone()))
            .collect(),
    }
}

fn is_measured(curve: &Curve) -> bool {
    curve.points.iter().any(|(_, time)| time.median > 0)
}

/// The fill and page kind that plots with one line a phase or a transport show: the first measured.
fn first_kind(rows: &[&Row]) -> Option<(Fill, Pages)> {
    rows.first()?.case.kind()
}

fn downtime_against_size(rows: &[&Row]) -> Vec<Plot> {
    let kinds = distinct(rows, |row| row.case.kind());
    let plot = |way: String| Plot {
        title: format!("{way}, downtime"),
        curves: kinds
            .iter()
            .flatten()
            .map(|&(fill, pages)| {
                let name = format!("{fill}, {pages}");
                curve(rows, name, (&way, (fill, pages)), |row| &row.downtime_ns)
            })
            .collect(),
    };
    distinct(rows, Row::way).into_iter().map(plot).collect()
}

fn phases_against_size(rows: &[&Row]) -> Vec<Plot> {
    let Some((fill, pages)) = first_kind(rows) else {
        return Vec::new();
    };
    let plot = |way: String| {
        let curves = Phase::ALL.map(|phase| {
            let name = phase.name().to_owned();
            curve(rows, name, (&way, (fill, pages)), |row| &row.phases[phase])
        });
        Plot {
            title: format!("{way}, {fill}, {pages}"),
            curves: curves.into_iter().filter(is_measured).collect(),
        }
    };
    distinct(rows, Row::way).into_iter().map(plot).collect()
}

fn ways_against_each_other(rows: &[&Row]) -> Vec<Plot> {
    let ways = distinct(rows, Row::way);
    let (Some((fill, pages)), 2..) = (first_kind(rows), ways.len()) else {
        return Vec::new();
    };
    let plot = |title: &str, time: fn(&Row) -> &Spread| Plot {
        title: format!("{title}, {fill}, {pages}"),
        curves: ways
            .iter()
            .map(|way| curve(rows, way.clone(), (way, (fill, pages)), time))
            .collect(),
    };
    vec![
        plot("downtime", |row| &row.downtime_ns),
        plot("blackout", |row| &row.phases[Phase::Blackout]),
    ]
}

fn cost_of_a_gib(report: &Report) -> Vec<Plot> {
    let plot = |rows: Vec<&Row>| {
        let curves = scale::PHASES.map(|phase| {
            let point = |row: &&Row| {
                let time = scale::per_gib(&row.phases[phase], row);
                (row.case.size_bytes, time)
            };
            Curve {
                name: format!("{} a GiB", phase.name()),
                points: rows.iter().map(point).collect(),
            }
        });
        let (fill, pages) = rows.first()?.case.kind()?;
        Some(Plot {
            title: format!("{}, {fill}, {pages}", rows.first()?.way()),
            curves: curves.into_iter().filter(is_measured).collect(),
        })
    };
    scale::series(report).into_iter().filter_map(plot).collect()
}

fn figure(plot: &Plot) -> Result<String> {
    let mut figure = format!(
        "<figure><figcaption>{}</figcaption><p class=\"legend\">",
        escape(&plot.title)
    );
    for (index, curve) in plot.curves.iter().enumerate() {
        let RGBColor(red, green, blue) = COLORS[index % COLORS.len()];
        write!(
            figure,
            "<span><i style=\"background:rgb({red},{green},{blue})\"></i>{}</span> ",
            escape(&curve.name)
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
    let points = || plot.curves.iter().flat_map(|curve| &curve.points);
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
        for (index, curve) in plot.curves.iter().enumerate() {
            let color = COLORS[index % COLORS.len()];
            let at = |size: u64, time: u64| (size as f64, time.max(1) as f64);
            chart.draw_series(LineSeries::new(
                curve
                    .points
                    .iter()
                    .map(|(size, time)| at(*size, time.median)),
                color.stroke_width(2),
            ))?;
            for (size, time) in &curve.points {
                let size = *size;
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
        "<table><thead><tr><th>files</th><th>way</th><th>downtime</th><th>verified</th>",
    );
    for phase in Phase::ALL {
        write!(table, "<th>{}</th>", phase.name())?;
    }
    table.push_str(
        "<th>collapse, before</th><th>collapsed</th><th>downtime a GiB</th><th>metadata</th>\
         <th>memory taken</th><th>moved</th><th>in huge pages</th></tr></thead><tbody>",
    );
    for row in &report.results {
        let verified = match &row.mismatch {
            None => "<td class=\"yes\">yes</td>".to_owned(),
            Some(mismatch) => format!("<td class=\"no\">no: {}</td>", escape(mismatch)),
        };
        write!(
            table,
            "<tr><td>{}</td><td>{}</td>{}{verified}",
            row.name(),
            row.way(),
            cell(&row.downtime_ns)
        )?;
        for phase in Phase::ALL {
            table.push_str(&cell(&row.phases[phase]));
        }
        let per_gib = row.downtime_ms_per_gib();
        let huge = row.huge_page_bytes;
        table.push_str(&match &row.collapse {
            None => "<td>–</td><td>–</td>".to_owned(),
            Some(it) => {
                let (done, asked) = (ByteSize(it.collapsed_bytes), ByteSize(it.asked_bytes));
                format!("{}<td>{done} of {asked}</td>", cell(&it.collapse_ns))
            }
        });
        write!(
            table,
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            per_gib.map_or_else(|| "–".to_owned(), |value| format!("{value:.2} ms")),
            ByteSize(row.metadata_bytes),
            ByteSize(row.extra_memory_bytes),
            ByteSize(row.moved_bytes),
            huge.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes).to_string()),
        )?;
    }
    table.push_str("</tbody></table>");
    Ok(table)
}

fn cell(spread: &Spread) -> String {
    format!(
        "<td>{}<small>{}–{}</small></td>",
        duration(spread.median),
        duration(spread.min),
        duration(spread.max)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests::report;

    #[test]
    fn downtime_is_the_first_plot_and_the_first_column() {
        let page = page(&report()).unwrap();
        let first = |what: &str| page.split(what).nth(1).unwrap().split('<').next().unwrap();
        assert_eq!(first("<h2>"), "Downtime against size");
        assert_eq!(first("<figcaption>"), "exec, downtime");
        let headings: Vec<&str> = page.split("<th>").skip(1).take(3).collect();
        assert!(headings[2].starts_with("downtime<"), "{headings:?}");
    }

    #[test]
    fn four_sizes_have_a_plot_of_what_a_gib_costs() {
        let mut report = report();
        let heading = "<h2>Cost of a GiB</h2>";
        assert!(!page(&report).unwrap().contains(heading));
        let mut largest = report.results[0].clone();
        largest.case.size_bytes = 4 << 30;
        largest.data_bytes = 4 << 30;
        report.results.push(largest);
        let page = page(&report).unwrap();
        let section = page.split(heading).nth(1).unwrap().split("<h2>").next();
        assert!(section.unwrap().contains("retrieve a GiB"), "{section:?}");
        assert_eq!(section.unwrap().matches("<svg").count(), 1);
        assert!(page.contains("exec 4k dense from 64.0 MiB to 4.0 GiB: prepare"));
    }
}
