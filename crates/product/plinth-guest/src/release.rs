//! The signed index of a suite, `InRelease`: its checksums, dates and signature.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::control::stanzas;
use crate::error::{GuestError, Result};

/// What a `Release` file promises.
#[derive(Debug, Clone, Default)]
pub struct Release {
    /// The code name, such as `trixie`.
    pub codename: String,
    /// The time it was made, in seconds since 1970.
    pub date: Option<i64>,
    /// The time it should no longer be used after.
    pub valid_until: Option<i64>,
    /// The server keeps files by their checksum, so that an update cannot tear a download.
    pub by_hash: bool,
    /// Path below the suite's folder to (SHA-256, bytes).
    pub files: HashMap<String, (String, u64)>,
}

impl Release {
    /// Reads the text without its signature.
    pub fn parse(text: &str) -> Result<Self> {
        let malformed = |reason: &str| GuestError::malformed("the Release file", reason);
        let stanza = stanzas(text).next().ok_or_else(|| malformed("it is empty"))?;
        let files = stanza.get("SHA256").ok_or_else(|| malformed("it has no SHA256 sums"))?;
        let files = files
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (sum, size, name) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
                (sum.len() == 64).then(|| (name.to_owned(), (sum.to_ascii_lowercase(), size)))
            })
            .collect();
        Ok(Self {
            codename: stanza.get("Codename").unwrap_or_default().to_owned(),
            date: stanza.get("Date").and_then(parse_date),
            valid_until: stanza.get("Valid-Until").and_then(parse_date),
            by_hash: stanza.get("Acquire-By-Hash") == Some("yes"),
            files,
        })
    }

    /// What is odd about the dates, for a warning.
    pub fn date_problem(&self, now: SystemTime) -> Option<String> {
        const DAY: i64 = 24 * 60 * 60;
        let now = now.duration_since(UNIX_EPOCH).ok().and_then(|d| i64::try_from(d.as_secs()).ok())?;
        if self.valid_until.is_some_and(|end| end < now) {
            Some(
                "the suite's index is out of date (Valid-Until has passed): is the mirror still updated?"
                    .into(),
            )
        } else if self.date.is_some_and(|date| date > now + DAY) {
            Some("the suite's index comes from the future: is the clock of this machine right?".into())
        } else {
            None
        }
    }
}

/// RFC 1123: `Sat, 12 Sep 2026 07:55:41 UTC`. Seconds since 1970.
fn parse_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<_> = text.split_whitespace().collect();
    let [_, day, month, year, time, ..] = words[..] else { return None };
    let day: i64 = day.parse().ok().filter(|d| (1..=31).contains(d))?;
    let month = i64::try_from(MONTHS.iter().position(|m| *m == month)?).ok()? + 1;
    let year: i64 = year.parse().ok().filter(|y| (1970..10_000).contains(y))?;
    let mut clock = time.split(':').map(|part| part.parse::<i64>().ok().filter(|n| (0..=60).contains(n)));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Takes the text out of a clear-signed message (RFC 9580, section 7). Nothing may stand before or after
/// it: a verifier would skip it, and so text that nobody signed could get in.
pub fn clear_text(message: &str) -> Result<String> {
    let malformed = |reason: &str| GuestError::malformed("InRelease", reason);
    let mut lines = message.lines();
    if lines.next() != Some("-----BEGIN PGP SIGNED MESSAGE-----") {
        return Err(malformed("it is not a signed message"));
    }
    for line in lines.by_ref() {
        if line.is_empty() {
            break;
        }
        if !line.starts_with("Hash: ") {
            return Err(malformed("it has an unknown header"));
        }
    }
    let mut text = String::new();
    let mut signed = false;
    for line in lines.by_ref() {
        if line == "-----BEGIN PGP SIGNATURE-----" {
            signed = true;
            break;
        }
        let line = match line.strip_prefix("- ") {
            Some(line) => line,
            None if line.starts_with('-') => return Err(malformed("a line in it has no dash escape")),
            None => line,
        };
        text.push_str(line);
        text.push('\n');
    }
    if !signed || !lines.any(|line| line == "-----END PGP SIGNATURE-----") {
        return Err(malformed("its signature is cut short"));
    }
    if lines.any(|line| !line.trim().is_empty()) {
        return Err(malformed("there is text after its signature"));
    }
    Ok(text)
}

/// How a signature check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A key of the keyring has signed it.
    Good,
    /// This host has nothing to check with; the text says what is missing.
    CannotCheck(String),
}

/// The program that checks signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// GnuPG's, which takes the clear-signed file.
    Gpgv,
    /// Sequoia's, which takes the text and a detached signature.
    Sqv,
}

/// What signatures can be checked with on this host.
#[derive(Debug, Clone)]
pub struct Verification {
    verifier: Option<Verifier>,
    keyring: Option<PathBuf>,
}

impl Verification {
    /// Looks for a verifier and for Debian's keyring.
    pub fn of_host() -> Self {
        let keyrings = Path::new("/usr/share/keyrings");
        Self {
            verifier: [(Verifier::Gpgv, "gpgv"), (Verifier::Sqv, "sqv")]
                .into_iter()
                .find(|(_, program)| is_program(program))
                .map(|(verifier, _)| verifier),
            keyring: ["debian-archive-keyring.gpg", "debian-archive-keyring.pgp"]
                .iter()
                .map(|name| keyrings.join(name))
                .find(|path| path.is_file()),
        }
    }

    /// A host without anything to check with.
    #[cfg(test)]
    pub fn none() -> Self {
        Self { verifier: None, keyring: None }
    }

    /// True when the check needs `Release` and `Release.gpg` rather than `InRelease`.
    pub fn wants_detached(&self) -> bool {
        self.verifier == Some(Verifier::Sqv) && self.keyring.is_some()
    }

    /// Checks a signed file; with a detached signature in `signature`.
    pub fn check(&self, file: &Path, signature: Option<&Path>) -> Result<Verdict> {
        let Some(verifier) = &self.verifier else {
            return Ok(Verdict::CannotCheck("neither gpgv nor sqv is installed".into()));
        };
        let Some(keyring) = &self.keyring else {
            return Ok(Verdict::CannotCheck(
                "there is no /usr/share/keyrings/debian-archive-keyring.gpg (package debian-archive-keyring)"
                    .into(),
            ));
        };
        let mut command = match verifier {
            Verifier::Gpgv => {
                let mut command = Command::new("gpgv");
                command.args(["--status-fd", "1", "--keyring"]).arg(keyring);
                command
            }
            Verifier::Sqv => {
                let mut command = Command::new("sqv");
                command.arg("--keyring").arg(keyring);
                command
            }
        };
        let output = command
            .args(signature)
            .arg(file)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| signature_error(file, format!("the verifier does not start: {e}")))?;
        let says = String::from_utf8_lossy(&output.stdout);
        let complains = String::from_utf8_lossy(&output.stderr);
        let good = match verifier {
            Verifier::Gpgv => gpgv_verdict(&says),
            Verifier::Sqv if output.status.success() => Ok(()),
            Verifier::Sqv => Err(sqv_complaint(&complains)),
        };
        good.map(|()| Verdict::Good).map_err(|reason| signature_error(file, reason))
    }
}

fn signature_error(file: &Path, reason: String) -> GuestError {
    GuestError::Signature {
        what: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        reason,
    }
}

const KEY_MISSING: &str =
    "the Debian keyring of this host does not have the key; install a newer debian-archive-keyring package";

fn sqv_complaint(complains: &str) -> String {
    if complains.contains("manipulated") {
        CHANGED.into()
    } else if complains.contains("Missing key") {
        KEY_MISSING.into()
    } else {
        complains.trim().to_owned()
    }
}

const CHANGED: &str = "it was changed after it was signed";

/// One good signature is enough, as for apt: a suite is signed with keys of several releases, and an
/// older keyring does not know the newest. A bad one spoils it. Lines are those of GnuPG's doc/DETAILS.
fn gpgv_verdict(status: &str) -> Result<(), String> {
    let has = |word: &str| {
        status.lines().any(|line| {
            line.strip_prefix("[GNUPG:] ").and_then(|l| l.split_whitespace().next()) == Some(word)
        })
    };
    if has("BADSIG") {
        Err(CHANGED.into())
    } else if has("GOODSIG") && has("VALIDSIG") {
        Ok(())
    } else if has("NO_PUBKEY") || has("ERRSIG") {
        Err(KEY_MISSING.into())
    } else if has("EXPKEYSIG") || has("REVKEYSIG") || has("EXPSIG") {
        Err("its key or signature has expired; install a newer debian-archive-keyring package".into())
    } else {
        Err("it has no signature".into())
    }
}

fn is_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\n- -x\n\
                          -----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n";

    #[test]
    fn clear_text_is_exactly_what_was_signed() {
        assert_eq!(clear_text(SIGNED).unwrap(), "Origin: Debian\n-x\n");
        for bad in [
            format!("SHA256:\n evil\n{SIGNED}"),
            format!("{SIGNED}SHA256:\n evil\n"),
            format!("{SIGNED}{SIGNED}"),
            SIGNED.replace("Hash: SHA256\n", "Hash: SHA256\nSHA256: evil\n"),
            SIGNED.replace("- -x", "-x"),
            SIGNED.replace("-----END PGP SIGNATURE-----\n", ""),
            String::new(),
        ] {
            assert!(clear_text(&bad).is_err(), "{bad}");
        }
        for len in 0..SIGNED.len() - 1 {
            assert!(clear_text(&SIGNED[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn reads_release() {
        let sum = "ab".repeat(32);
        let text = format!(
            "Origin: Debian\nCodename: trixie\nDate: Sat, 12 Sep 2026 07:55:41 UTC\n\
             Acquire-By-Hash: yes\nMD5Sum:\n 00 1 x\nSHA256:\n {sum} 12 main/Packages.xz\n bad line\n"
        );
        let release = Release::parse(&text).unwrap();
        assert_eq!(release.files["main/Packages.xz"], (sum, 12));
        assert_eq!(release.files.len(), 1);
        assert_eq!(release.date, Some(1_789_199_741));
        assert!(release.by_hash);
        assert!(Release::parse("Origin: x\n").is_err());
        assert!(Release::parse("").is_err());
    }

    #[test]
    fn dates() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(parse_date("Tue, 29 Feb 2000 12:00:00 UTC"), Some(951_825_600));
        for bad in ["", "Thu, 01 Jan", "x 99 Jan 2000 1:1:1", "x 1 Foo 2000 1:1:1", "x 1 Jan 2000 1:1"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
        let release = Release { valid_until: Some(10), ..Release::default() };
        assert!(release.date_problem(SystemTime::now()).is_some());
        assert!(Release::default().date_problem(SystemTime::now()).is_none());
    }

    #[test]
    fn gpgv_status() {
        let good = "[GNUPG:] GOODSIG 78DBA3BC47EF2265 Debian\n[GNUPG:] VALIDSIG B8E5\n";
        let missing = "[GNUPG:] ERRSIG 762F 22 8\n[GNUPG:] NO_PUBKEY 762F\n";
        assert!(gpgv_verdict(good).is_ok());
        assert!(gpgv_verdict(&format!("{missing}{good}")).is_ok());
        assert!(gpgv_verdict(missing).unwrap_err().contains("debian-archive-keyring"));
        assert!(gpgv_verdict(&format!("{good}[GNUPG:] BADSIG 1 x\n")).is_err());
        assert!(gpgv_verdict("gpgv: GOODSIG VALIDSIG\n").is_err());
        assert!(gpgv_verdict("").is_err());
    }

    #[test]
    fn sqv_complaints() {
        assert_eq!(sqv_complaint("Missing key 4CB5, which is needed to verify signature.\n"), KEY_MISSING);
        assert_eq!(sqv_complaint("Missing key\n Message has been manipulated\n"), CHANGED);
        assert_eq!(sqv_complaint(" odd \n"), "odd");
    }

    #[test]
    fn without_a_verifier_nothing_is_claimed() {
        assert!(matches!(Verification::none().check(Path::new("x"), None).unwrap(), Verdict::CannotCheck(_)));
    }
}
