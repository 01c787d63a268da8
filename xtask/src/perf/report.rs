//! From samples to the table of docs/performance.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::emulator::{Emulator, Programs};
use super::figures::{Aim, Better, Figure, Row, Sample, Samples, WORK};
use super::material::Material;

const BEGIN: &str = "<!-- perf:begin -->";
const END: &str = "<!-- perf:end -->";
const HEAD: &str = "\
| what | unit | Plinth | QEMU | ratio | ratio of CPU time | RVVM | ratio | wanted | met | rounds | load | date |
|---|---|--:|--:|--:|--:|--:|--:|---|---|--:|--:|---|";

/// The title of the line that follows the rows of the work in the guest.
const MEAN: &str = "work in the guest, geometric mean";

/// One round: a start of each emulator, one right after the other.
pub type Round = BTreeMap<Emulator, Samples>;

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The first cell, by which lines of different runs replace one another.
    pub title: String,
    /// The other cells.
    pub cells: Vec<String>,
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// How many times as good Plinth was as `peer`: the median over the rounds of `pick`'s ratio.
fn ratio(
    rounds: &[Round],
    row: &Row,
    peer: Emulator,
    pick: impl Fn(&Sample) -> Option<f64>,
    better: Better,
) -> Option<f64> {
    let of = |round: &Round, emulator| round.get(&emulator)?.values.get(row.key).and_then(&pick);
    let ratios = rounds.iter().filter_map(|round| {
        let (own, peer) = (of(round, Emulator::Plinth)?, of(round, peer)?);
        let ratio = if better == Better::Lower { peer / own } else { own / peer };
        ratio.is_finite().then_some(ratio)
    });
    median(ratios.collect())
}

/// The lines of a figure.
pub fn lines(figure: &Figure, rounds: &[Round], date: &str) -> Vec<Line> {
    let load = load_average();
    let mut lines = Vec::new();
    let mut ratios = Vec::new();
    for row in figure.rows {
        let value = |emulator| {
            let all = rounds.iter().filter_map(|r| Some(r.get(&emulator)?.values.get(row.key)?.value));
            median(all.collect())
        };
        let (own, peer, second) = (value(Emulator::Plinth), value(Emulator::Qemu), value(Emulator::Rvvm));
        let wall = ratio(rounds, row, Emulator::Qemu, |s| Some(s.value), row.better);
        let cpu = ratio(rounds, row, Emulator::Qemu, |s| s.cpu, Better::Lower);
        let beside_second = ratio(rounds, row, Emulator::Rvvm, |s| Some(s.value), row.better);
        ratios.extend(wall.zip(cpu));
        let (wanted, met) = match row.aim {
            Aim::Times(times) => (format!("at least {times}"), wall.map(|r| r >= times)),
            Aim::AtMost(most) => (format!("at most {most}"), own.map(|v| v <= most)),
        };
        let met = met.map(|met| met && beside_second.is_none_or(|r| r >= 1.0));
        let mut cells = vec![row.unit.to_owned()];
        cells.extend([own, peer, wall, cpu, second, beside_second].map(|v| v.map_or("–".into(), digits)));
        cells.extend([wanted, answer(met), rounds.len().to_string(), load.clone(), date.to_owned()]);
        lines.push(Line { title: row.title.into(), cells });
    }
    if figure.name == WORK && ratios.len() == figure.rows.len() {
        const WANTED: f64 = 1.5;
        let mean = |values: Vec<f64>| {
            let count = values.len() as f64;
            (values.into_iter().map(f64::ln).sum::<f64>() / count).exp()
        };
        let (wall, cpu): (Vec<f64>, Vec<f64>) = ratios.into_iter().unzip();
        let wall = mean(wall);
        let mut cells: Vec<String> = ["", "", ""].map(String::from).to_vec();
        cells.extend([digits(wall), digits(mean(cpu))]);
        cells.extend(["–".into(), "–".into(), format!("at least {WANTED}")]);
        cells.extend([answer(Some(wall >= WANTED)), rounds.len().to_string(), load, date.to_owned()]);
        lines.push(Line { title: MEAN.into(), cells });
    }
    lines
}

fn answer(met: Option<bool>) -> String {
    met.map_or("–", |met| if met { "yes" } else { "no" }).into()
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

/// The table, for the terminal or the page.
pub fn table(lines: &[Line]) -> String {
    let mut text = HEAD.to_owned();
    for line in lines {
        let _ = write!(text, "\n| {} | {} |", line.title, line.cells.join(" | "));
    }
    text
}

/// Outputs of the guest's programs that were not the same everywhere: a wrong result.
pub fn differences(figure: &Figure, rounds: &[Round]) -> Vec<String> {
    let mut found = Vec::new();
    for row in figure.rows {
        let mut sums: Vec<(Emulator, &String)> = rounds
            .iter()
            .flat_map(|round| round.iter().filter_map(|(e, s)| Some((*e, s.checksums.get(row.key)?))))
            .collect();
        sums.sort_unstable();
        sums.dedup();
        if sums.iter().any(|(_, sum)| *sum != sums[0].1) {
            let all: Vec<String> = sums.iter().map(|(e, sum)| format!("{} {sum}", e.name())).collect();
            found.push(format!("{}: the results differ: {}", row.title, all.join(", ")));
        }
    }
    found
}

/// Puts the lines into the page, in place of those with the same title; the other ones stay.
pub fn write(
    root: &Path,
    lines: Vec<Line>,
    order: &[Figure],
    programs: &Programs,
    material: &Material,
) -> Result<(), String> {
    let path = root.join("docs/performance.md");
    let page = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (old, after) = rest.split_once(END)?;
        Some((before, old, after))
    });
    let (before, old, after) = parts.ok_or_else(|| format!("{} lacks {BEGIN} and {END}", path.display()))?;
    let text = format!(
        "{before}{BEGIN}\n{}\n\n{}\n{END}{after}",
        table(&merge(old, lines, order)),
        surroundings(programs, material)?
    );
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Lines of an old table and new ones, in the order of the figures.
fn merge(old: &str, new: Vec<Line>, order: &[Figure]) -> Vec<Line> {
    let mut all: Vec<Line> = old
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned);
            let title = cells.next()?;
            (title != "what").then(|| Line { title, cells: cells.collect() })
        })
        .filter(|line| new.iter().all(|n| n.title != line.title))
        .collect();
    all.extend(new);
    let mut titles = Vec::new();
    for figure in order {
        titles.extend(figure.rows.iter().map(|row| row.title));
        titles.extend((figure.name == WORK).then_some(MEAN));
    }
    // Lines of figures that are no more stand at the end.
    all.sort_by_key(|line| titles.iter().position(|t| *t == line.title).unwrap_or(titles.len()));
    all
}

/// What the last run was taken with.
fn surroundings(programs: &Programs, material: &Material) -> Result<String, String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_once(": ")).map_or("unknown", |(_, value)| value).to_owned()
    };
    let versions: Vec<String> =
        programs.emulators().into_iter().map(|e| programs.version(e)).collect::<Result<_, _>>()?;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let system = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(format!(
        "Host of the last run: {} (family {}, model {}), {cpus} CPUs, Linux {}. {}. Guest kernel: {}.",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        system.trim().split('-').next().unwrap_or_default(),
        versions.join("; "),
        material.kernel_release
    ))
}

/// Processes that the host had to run in the last minute, on average: above its number of CPUs, the
/// wall times hold waiting.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("–").to_owned()
}

/// Today, in UTC.
pub fn today() -> Result<String, String> {
    let output =
        Command::new("date").args(["-u", "+%F"]).output().map_err(|e| format!("cannot start date: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::figures::FIGURES;
    use super::*;

    fn round(own: f64, peer: f64) -> Round {
        [(Emulator::Plinth, own), (Emulator::Qemu, peer)]
            .into_iter()
            .map(|(emulator, value)| {
                let mut samples = Samples::default();
                samples.values.insert("boot", Sample { value, cpu: Some(value / 2.0) });
                samples.checksums.insert("boot", value.to_string());
                (emulator, samples)
            })
            .collect()
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let rounds = [round(1.0, 2.0), round(10.0, 30.0), round(2.0, 10.0)];
        let lines = lines(&FIGURES[0], &rounds, "2000-01-01");
        assert_eq!(lines[0].cells[1..5], ["2.00", "10.0", "3.00", "3.00"]);
        assert_eq!(lines[0].cells[8], "yes");
    }

    #[test]
    fn different_results_are_told() {
        assert_eq!(differences(&FIGURES[0], &[round(1.0, 1.0)]), Vec::<String>::new());
        assert_eq!(differences(&FIGURES[0], &[round(1.0, 2.0)]).len(), 1);
    }

    #[test]
    fn a_new_line_replaces_the_old_one_in_its_place() {
        let line = |title: &str, cell: &str| Line { title: title.into(), cells: vec![cell.into()] };
        let boot = FIGURES[0].rows[0].title;
        let old = table(&[line("CoreMark", "1"), line(boot, "2")]);
        let merged = merge(&old, vec![line(boot, "3")], FIGURES);
        assert_eq!(merged, [line(boot, "3"), line("CoreMark", "1")]);
    }
}
