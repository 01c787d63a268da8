//! JSON as QEMU prints it.

use serde_json::Value;

/// Where QEMU's dictionaries keep a key: they are printed in the order of their buckets.
fn bucket(key: &str) -> u32 {
    const START: u32 = 0x238f_13af;
    let sum = key
        .bytes()
        .zip(0u32..)
        .fold(START.wrapping_mul(key.len() as u32), |v, (b, i)| v.wrapping_add(u32::from(b) << (i * 5 % 24)));
    const BUCKETS: u32 = 512;
    1_103_515_243u32.wrapping_mul(sum).wrapping_add(12345) % BUCKETS
}

/// Keys in QEMU's order.
pub fn ordered(map: &serde_json::Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut all: Vec<_> = map.iter().collect();
    all.sort_by_key(|(k, _)| bucket(k));
    all
}

/// A value over several lines, four spaces for each level.
pub fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

fn write(value: &Value, level: usize, text: &mut String) {
    let indent = |text: &mut String, level: usize| {
        text.push('\n');
        text.push_str(&"    ".repeat(level));
    };
    match value {
        Value::Object(map) => {
            text.push('{');
            for (n, (key, value)) in ordered(map).into_iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                indent(text, level + 1);
                text.push_str(&format!("{}: ", Value::String(key.clone())));
                write(value, level + 1, text);
            }
            indent(text, level);
            text.push('}');
        }
        Value::Array(all) => {
            text.push('[');
            for (n, value) in all.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                indent(text, level + 1);
                write(value, level + 1, text);
            }
            indent(text, level);
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// A value as `info` shows it to people, `level` deep.
pub fn human(value: &Value, level: usize, text: &mut String) {
    let scalar = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let indent = "    ".repeat(level);
    let line = |name: String, value: &Value, text: &mut String| {
        text.push_str(&format!("{indent}{name}:"));
        if value.is_object() || value.is_array() {
            text.push('\n');
            human(value, level + 1, text);
        } else {
            text.push_str(&format!(" {}\n", scalar(value)));
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in ordered(map) {
                line(key.replace('-', " "), value, text);
            }
        }
        Value::Array(all) => {
            for (n, value) in all.iter().enumerate() {
                line(format!("[{n}]"), value, text);
            }
        }
        other => text.push_str(&scalar(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_order_of_qemus_dictionaries() {
        let value = serde_json::json!({
            "virtual-size": 1, "filename": "x", "cluster-size": 2, "format": "qcow2", "actual-size": 3,
            "dirty-flag": false, "children": [], "format-specific": {},
        });
        let keys: Vec<_> = ordered(value.as_object().unwrap()).into_iter().map(|(k, _)| k.as_str()).collect();
        let expected = [
            "children",
            "virtual-size",
            "filename",
            "cluster-size",
            "format",
            "actual-size",
            "format-specific",
            "dirty-flag",
        ];
        assert_eq!(keys, expected);
        assert_eq!(pretty(&serde_json::json!({ "a": [] })), "{\n    \"a\": [\n    ]\n}");
    }
}
