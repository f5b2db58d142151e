//! Draws messages per second over requests in flight as an SVG: both axes are logarithmic, and each contender has a line with its
//! name at the end. The image is readable on light and dark backgrounds.

use std::fmt::Write as _;

use crate::contender::{Contender, Ledger};
use crate::results::Results;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
/// Margins: left, top, right (for the names) and bottom.
const MARGINS: (f64, f64, f64, f64) = (70.0, 46.0, 200.0, 48.0);
/// The smallest distance of two names.
const LINE: f64 = 17.0;

const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px }
  .axis { stroke: #d1d9e0 }
  .dim { fill: #59636e }
  .file { --c: #0969da } .redis { --c: #8250df } .memory { --c: #1b7c83 }
  .bare { --c: #59636e } .python { --c: #bc4c00 } .amqp { --c: #9a6700 }
  polyline { fill: none; stroke: var(--c); stroke-width: 2 }
  .file polyline { stroke-width: 3.5 } .bare polyline { stroke-dasharray: 6 4 }
  circle { fill: var(--c) } .name { fill: var(--c) } .file .name { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .axis { stroke: #3d444d } .dim { fill: #9198a1 }
    .file { --c: #4493f8 } .redis { --c: #ab7df8 } .memory { --c: #39c5cf }
    .bare { --c: #9198a1 } .python { --c: #f0883e } .amqp { --c: #d29922 }
  }
";

fn class(contender: Contender) -> &'static str {
    match contender {
        Contender::Worker(Ledger::File) => "file",
        Contender::Worker(Ledger::Redis) => "redis",
        Contender::Worker(Ledger::Memory) => "memory",
        Contender::BareLoop => "bare",
        Contender::Python => "python",
        Contender::AmqpConsume => "amqp",
    }
}

/// The position of a value between two others on a logarithmic axis, from 0 to 1.
fn place(value: f64, from: f64, to: f64) -> f64 {
    if to > from { (value / from).ln() / (to / from).ln() } else { 0.5 }
}

struct Frame {
    in_flight: (f64, f64),
    rates: (f64, f64),
}

impl Frame {
    fn around(results: &Results) -> Self {
        let (mut in_flight, mut rates) = ((f64::MAX, f64::MIN), (f64::MAX, f64::MIN));
        for at in &results.throughput {
            let (count, rate) = (at.in_flight as f64, at.rate.median());
            in_flight = (in_flight.0.min(count), in_flight.1.max(count));
            rates = (rates.0.min(rate), rates.1.max(rate));
        }
        // The axis ends at whole powers of ten.
        let rates = (10_f64.powf(rates.0.log10().floor()), 10_f64.powf(rates.1.log10().ceil()));
        Self { in_flight, rates }
    }

    fn x(&self, in_flight: f64) -> f64 {
        MARGINS.0 + place(in_flight, self.in_flight.0, self.in_flight.1) * (WIDTH - MARGINS.0 - MARGINS.2)
    }

    fn y(&self, rate: f64) -> f64 {
        HEIGHT - MARGINS.3 - place(rate, self.rates.0, self.rates.1) * (HEIGHT - MARGINS.1 - MARGINS.3)
    }
}

/// The chart.
pub fn svg(results: &Results) -> String {
    let frame = Frame::around(results);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Messages a second over requests in flight\">\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"{}\" y=\"24\">Messages a second, by requests in flight</text>\n",
        MARGINS.0
    );
    axes(results, &frame, &mut svg);
    lines(results, &frame, &mut svg);
    svg + "</svg>\n"
}

fn axes(results: &Results, frame: &Frame, svg: &mut String) {
    let (left, right, bottom) = (MARGINS.0, WIDTH - MARGINS.2, HEIGHT - MARGINS.3);
    let mut rate = frame.rates.0;
    while rate <= frame.rates.1 * 1.01 {
        let y = frame.y(rate);
        let _ = writeln!(svg, "<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
        let text = y + 4.0;
        let end = left - 8.0;
        let _ = writeln!(svg, "<text class=\"dim\" text-anchor=\"end\" x=\"{end}\" y=\"{text:.1}\">{rate:.0}</text>");
        rate *= 10.0;
    }
    let mut counts: Vec<usize> = results.throughput.iter().map(|at| at.in_flight).collect();
    counts.dedup();
    for count in counts {
        let (x, y) = (frame.x(count as f64), bottom + 20.0);
        let _ = writeln!(svg, "<text class=\"dim\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{y:.1}\">{count}</text>");
    }
}

fn lines(results: &Results, frame: &Frame, svg: &mut String) {
    let mut ends: Vec<(f64, Contender)> = Vec::new();
    for contender in Contender::ALL {
        let points = results.throughput.iter().filter(|at| at.contender == contender);
        let points: Vec<(f64, f64)> =
            points.map(|at| (frame.x(at.in_flight as f64), frame.y(at.rate.median()))).collect();
        let Some((_, end)) = points.last() else { continue };
        ends.push((*end, contender));
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(svg, "<g class=\"{}\"><polyline points=\"{}\"/>", class(contender), path.join(" "));
        for (x, y) in points {
            let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
        }
        *svg += "</g>\n";
    }
    // From top to bottom, so that no name covers another one.
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let x = WIDTH - MARGINS.2 + 12.0;
    let mut free = f64::MIN;
    for (end, contender) in ends {
        let y = (end + 4.0).max(free);
        free = y + LINE;
        let (class, name) = (class(contender), contender.name());
        let _ = writeln!(svg, "<g class=\"{class}\"><text class=\"name\" x=\"{x}\" y=\"{y:.1}\">{name}</text></g>");
    }
}
