//! A plot as SVG, which needs nothing beside it: lines over a logarithmic axis.

use std::fmt::Write;

use crate::report::short;

/// A name, and its points from left to right.
type Line = (String, Vec<(f64, f64)>);

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 380.0;
/// Left, right, above and below of what is plotted.
const MARGINS: [f64; 4] = [64.0, 136.0, 44.0, 40.0];

/// Colours and dashes of lines: dashes tell them apart where colours do not.
const STYLES: [(&str, &str); 8] = [
    ("#c2410c", ""),
    ("#1d4ed8", "8 4"),
    ("#15803d", "3 3"),
    ("#7e22ce", "10 3 2 3"),
    ("#0e7490", "1 4"),
    ("#a16207", "12 6"),
    ("#be185d", "6 2 2 2"),
    ("#475569", "2 6"),
];

/// Whose line is drawn first in the list of styles, and thicker.
const OURS: &str = "mailchime";

/// The plot of these lines. The axis of values begins at 0 and is linear.
pub(crate) fn svg(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|(_, points)| points.iter().copied());
    let (first, last) =
        all().fold((f64::MAX, 1.0_f64), |(first, last), (x, _)| (first.min(x), last.max(x)));
    let top = round_up(all().map(|(_, y)| y).fold(0.0, f64::max));
    let [left, right, above, below] = MARGINS;
    let span = (last / first).log10().max(f64::MIN_POSITIVE);
    let x_of = |x: f64| left + (x / first).log10() / span * (WIDTH - left - right);
    let y_of = |y: f64| HEIGHT - below - y / top * (HEIGHT - above - below);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\" fill=\"#111827\">{title}</text>\n"
    );
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        let y = y_of(value);
        let _ = writeln!(
            out,
            "<path d=\"M{left} {y:.1}H{:.1}\" stroke=\"#d1d5db\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#374151\">{}</text>",
            WIDTH - right,
            left - 6.0,
            y + 4.0,
            grouped(value),
        );
    }
    let mut places: Vec<f64> = all().map(|(x, _)| x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    for x in places {
        let (at, y) = (x_of(x), HEIGHT - below + 18.0);
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#374151\">{}</text>",
            grouped(x),
        );
    }
    let mut ordered: Vec<&Line> = lines.iter().collect();
    ordered.sort_by_key(|(name, _)| name != OURS);
    for (place, ((name, points), (colour, dashes))) in ordered.iter().zip(STYLES).enumerate() {
        let width = if name == OURS { 3 } else { 2 };
        let path: Vec<_> =
            points.iter().map(|(x, y)| format!("{:.1} {:.1}", x_of(*x), y_of(*y))).collect();
        let stroke = format!(
            "stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\" fill=\"none\""
        );
        let _ = writeln!(out, "<path d=\"M{}\" {stroke}/>", path.join("L"));
        for (x, y) in points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{name}: {} at {}</title></circle>",
                x_of(*x),
                y_of(*y),
                short(*y),
                grouped(*x),
            );
        }
        let (x, y) = (WIDTH - right + 14.0, above + 10.0 + place as f64 * 20.0);
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {y:.1}h24\" {stroke}/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#111827\">{name}</text>",
            x + 30.0,
            y + 4.0,
        );
    }
    out + "</svg>\n"
}

/// The next number of one digit that counts, or of 1.2, 1.5 or 2.5.
fn round_up(number: f64) -> f64 {
    if number <= 0.0 {
        return 1.0;
    }
    let size = 10_f64.powf(number.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
    size * steps.into_iter().find(|step| number <= step * size).unwrap_or(10.0)
}

/// With commas between thousands.
fn grouped(number: f64) -> String {
    if number < 100.0 {
        return short(number).trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
