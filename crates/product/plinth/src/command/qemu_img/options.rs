//! Options of formats: how QEMU prints them, and `amend`.

use plinth_image::SECTOR;
use plinth_image::format::{Format, Image, OptionKind, Options};

use super::convert::with_progress;
use super::getopt::{Parsed, parse};
use super::names::{qemu_name, size};
use super::open::{How, image};
use super::refusal::{amend_failure, amend_refusal};
use super::secret::{resolved, secrets};
use super::{Exit, Result, block_on, option_help, reason};

/// Options in the order in which QEMU prints them when it creates an image, with their defaults.
fn printed(format: Format) -> &'static [(&'static str, Option<&'static str>)] {
    match format {
        Format::Qcow2 => &[
            ("encryption", None),
            ("encrypt.format", None),
            ("encrypt.key-secret", None),
            ("encrypt.cipher-alg", None),
            ("encrypt.cipher-mode", None),
            ("encrypt.ivgen-alg", None),
            ("encrypt.ivgen-hash-alg", None),
            ("encrypt.hash-alg", None),
            ("encrypt.iter-time", None),
            ("cluster_size", Some("65536")),
            ("extended_l2", Some("off")),
            ("preallocation", None),
            ("compression_type", Some("zlib")),
            ("size", None),
            ("compat", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("data_file", None),
            ("data_file_raw", None),
            ("lazy_refcounts", Some("off")),
            ("refcount_bits", Some("16")),
        ],
        Format::Vmdk => &[
            ("size", None),
            ("adapter_type", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("compat6", Some("off")),
            ("hwversion", Some("undefined")),
            ("toolsversion", None),
            ("subformat", None),
            ("zeroed_grain", None),
        ],
        Format::Vdi => &[("size", None), ("static", Some("off"))],
        Format::Vhd => &[("size", None), ("subformat", None), ("force_size", None)],
        Format::Vhdx => &[
            ("size", None),
            ("log_size", Some("1048576")),
            ("block_size", Some("0")),
            ("subformat", None),
            ("block_state_zero", None),
        ],
        Format::Qed => &[
            ("size", None),
            ("backing_file", None),
            ("backing_fmt", None),
            ("cluster_size", Some("65536")),
            ("table_size", None),
        ],
        Format::Parallels => &[("size", None), ("cluster_size", Some("1048576"))],
        Format::Luks => &[
            ("preallocation", None),
            ("size", None),
            ("key-secret", None),
            ("version", None),
            ("cipher-alg", None),
            ("cipher-mode", None),
            ("ivgen-alg", None),
            ("ivgen-hash-alg", None),
            ("hash-alg", None),
            ("iter-time", None),
            ("pbkdf", None),
            ("sector-size", None),
        ],
        _ => &[("size", None), ("preallocation", None)],
    }
}

/// The options of a new image, sorted into those that are everybody's and those of the format.
#[derive(Debug, Default)]
pub struct NewOptions {
    /// The format's own.
    pub own: Options,
    /// `size`.
    pub size: Option<u64>,
    /// `backing_file`.
    pub backing: Option<String>,
    /// `backing_fmt`.
    pub backing_format: Option<String>,
    /// The ID of the passphrase.
    pub secret: Option<String>,
    /// `encryption`, which asks for the encryption of old.
    pub encryption: Option<String>,
}

/// QEMU refuses lists that could not be put together.
pub fn check_lists(parsed: &Parsed) -> Result {
    for text in parsed.values("o") {
        let trailing = text.len() - text.trim_end_matches(',').len();
        if text.is_empty() || text.starts_with(',') || trailing % 2 == 1 {
            return Err(Exit::failed(format!("Invalid option list: {text}")));
        }
    }
    Ok(())
}

/// Options for `-o`.
pub fn collect(parsed: &Parsed) -> Result<Option<Options>> {
    check_lists(parsed)?;
    let texts = parsed.values("o");
    let mut all = Options::default();
    for text in &texts {
        all.add(text).map_err(|e| Exit::failed(reason(&e)))?;
    }
    Ok((!texts.is_empty()).then_some(all))
}

/// True if images of the format stand on others.
pub fn can_have_backing(format: Format) -> bool {
    matches!(format, Format::Qcow2 | Format::Vmdk | Format::Qed | Format::Vdi | Format::Vhd | Format::Vhdx)
}

/// Sorts the options of a new image.
pub fn sort(format: Format, all: Option<Options>) -> Result<NewOptions> {
    let mut new = NewOptions { own: all.unwrap_or_default(), ..NewOptions::default() };
    if let Some(text) = new.own.remove("size") {
        new.size = Some(bytes("size", &text)?);
    }
    if can_have_backing(format) {
        new.backing = new.own.remove("backing_file");
        new.backing_format = new.own.remove("backing_fmt");
    }
    match format {
        Format::Luks => new.secret = new.own.remove("key-secret"),
        Format::Qcow2 => {
            new.secret = new.own.remove("encrypt.key-secret");
            new.encryption = new.own.remove("encryption");
            if let Some(value) = &new.encryption
                && flag("encryption", value)?
            {
                new.own.set("encrypt.format", "aes");
            }
        }
        _ => {}
    }
    // Asks for what is so on file systems without the feature.
    new.own.remove("nocow");
    new.own.remove("extent_size_hint");
    let Some(driver) = format.driver() else { return Ok(new) };
    let mut plain = Vec::new();
    for (name, value) in new.own.iter() {
        let Some(spec) = driver.options.iter().find(|s| s.name == name) else {
            return Err(Exit::failed(format!("Invalid parameter '{name}'")));
        };
        match spec.kind {
            // Hexadecimal sizes and the like are only QEMU's.
            OptionKind::Size => plain.push((name.to_owned(), bytes(name, value)?.to_string())),
            OptionKind::Number => match value.parse::<i128>() {
                // Whatever is wrong with such a number is said of the option it is for.
                Ok(n) if n < 0 => plain.push((name.to_owned(), u64::MAX.to_string())),
                Ok(n) if n <= u64::MAX.into() => {}
                _ => return Err(Exit::failed(format!("Parameter '{name}' expects a number"))),
            },
            OptionKind::Flag => _ = flag(name, value)?,
            // What a text or a choice may be is said later, where QEMU says it.
            OptionKind::Choice(_) | OptionKind::Text => {}
        }
    }
    for (name, number) in plain {
        new.own.set(&name, &number);
    }
    Ok(new)
}

fn flag(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(Exit::failed(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

/// The hint behind what is wrong with a size.
pub const UNITS: &str = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, \
                         respectively.";

fn bytes(name: &str, value: &str) -> Result<u64> {
    match size(value) {
        Some(Ok(n)) => Ok(n),
        Some(Err(())) => Err(Exit::failed(format!("Value '{value}' is out of range for parameter '{name}'"))),
        None => {
            Err(Exit::failed(format!("Parameter '{name}' expects a non-negative number below 2^64\n{UNITS}")))
        }
    }
}

/// The line that QEMU prints when it creates an image.
pub fn formatting(file: &str, format: Format, new: &NewOptions, bytes: Option<u64>) -> String {
    let mut text = format!("Formatting '{file}', fmt={} ", qemu_name(format));
    let escape = |v: &str| v.replace(',', ",,");
    let bytes = bytes.map(|b| b.to_string());
    for (name, default) in printed(format) {
        let value = match *name {
            "size" => bytes.clone(),
            "backing_file" => new.backing.as_deref().map(escape),
            "backing_fmt" => new.backing_format.as_deref().map(escape),
            "encryption" => new.encryption.clone(),
            "encrypt.format" if new.encryption.is_some() => None,
            "key-secret" | "encrypt.key-secret" => new.secret.as_deref().map(escape),
            name => new.own.text(name).map(escape),
        };
        if let Some(value) = value.or(default.map(str::to_owned)) {
            text.push_str(&format!("{name}={value} "));
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// The format that an image is said to have.
fn amended(name: Option<&str>, file: &str) -> Result<Option<Format>> {
    let Some(name) = name else { return Ok(None) };
    super::names::format(name).map(Some).ok_or_else(|| {
        Exit::failed(match super::names::unknown(name).contains("driver") {
            true => format!("Format driver '{name}' does not support option amendment"),
            false => format!("Could not open '{file}': Unknown driver '{name}'"),
        })
    })
}

/// Takes out what is said of the image below, if it is what the image says.
fn same_backing(image: &dyn Image, options: &mut Options) -> Result {
    let name = options.remove("backing_file");
    let format = options.remove("backing_fmt");
    let link = image.describe().backing;
    let known = link.as_ref().map(|l| l.name.as_str()).unwrap_or_default();
    let known_format = link.as_ref().and_then(|l| l.format).map(qemu_name).unwrap_or_default();
    if name.is_some_and(|n| n != known) || format.is_some_and(|f| f != known_format) {
        let why = "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.";
        return Err(Exit::failed(why));
    }
    Ok(())
}

/// `qemu-img amend`.
pub fn amend(args: Vec<String>) -> Result {
    let parsed = parse(args, "ho:qf:t:p", &[("force", false, "force")])?;
    let help = option_help::wanted(&parsed)?;
    let file = parsed.rest.first().map(String::as_str).unwrap_or_default();
    let format = amended(parsed.value("f"), file)?;
    if let Some(format) = format.filter(|_| help) {
        return option_help::for_change(format);
    }
    let options = if help { Some(Options::default()) } else { collect(&parsed)? };
    let Some(mut options) = options else { return Err(Exit::usage("Must specify options (-o)")) };
    let [name] = &parsed.rest[..] else { return Err(Exit::failed("Expecting one image file name")) };
    let how = How { secrets: secrets(&parsed)?, ..How::default() };
    block_on(async {
        let image = image(name, parsed.value("f"), parsed.has("image-opts"), &how).await?;
        if help {
            return option_help::for_change(image.format());
        }
        if !matches!(image.format(), Format::Qcow2 | Format::Luks) {
            let name = qemu_name(image.format());
            return Err(Exit::failed(format!("Format driver '{name}' does not support option amendment")));
        }
        same_backing(&*image, &mut options)?;
        if let Some(why) = amend_refusal(&*image, &options) {
            return Err(Exit::failed(why));
        }
        let failed = |e: plinth_image::Error| Exit::failed(reason(&e));
        let mut options = resolved(&options, &how.secrets)?;
        let new_size = options.remove("size").map(|text| bytes("size", &text)).transpose()?;
        if parsed.has("force") {
            let key = |prefix: &str| options.text(&format!("{prefix}state")).is_some();
            let force = [("encrypt.", "encrypt.force"), ("", "force")].into_iter().find(|f| key(f.0));
            force.into_iter().for_each(|f| options.set(f.1, "on"));
        }
        // An old version can have no other size than its snapshots have.
        let first = matches!(options.text("compat"), Some("0.10" | "v2"));
        let resize = async |now: bool| match new_size {
            Some(new) if now => image.resize(new.next_multiple_of(SECTOR)).await.map_err(failed),
            _ => Ok(()),
        };
        with_progress(parsed.has("p") && !parsed.has("q"), async |progress| {
            resize(first).await?;
            let amended = image.amend(&options, progress).await;
            amended.map_err(|e| Exit::failed(amend_failure(reason(&e), &options)))?;
            resize(!first).await
        })
        .await?;
        image.close().await.map_err(failed)
    })
}
