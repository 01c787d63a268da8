//! Descriptions of nodes: `json:{...}`, and `driver=...,key=value` of `--image-opts`.

use std::collections::BTreeMap;

use serde_json::Value;

/// A node that is described by its driver, its options, and the nodes below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Options that are not other nodes, with dots between the levels of their names.
    pub options: BTreeMap<String, String>,
    /// Nodes below, by what they are for: `file`, `image`, `backing`, `data-file`, `children.0` and so on.
    pub below: BTreeMap<String, Tree>,
}

/// What nodes below are called.
const BELOW: [&str; 4] = ["file", "image", "backing", "data-file"];

/// The node below that an option with a dotted name belongs to, and the option's name there.
fn part_of(key: &str) -> Option<(&str, &str)> {
    if let Some(rest) = key.strip_prefix("children.") {
        let (number, name) = rest.split_once('.')?;
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        return digits.then(|| (&key[..key.len() - name.len() - 1], name));
    }
    let (node, name) = key.split_once('.')?;
    BELOW.contains(&node).then_some((node, name))
}

impl Tree {
    /// Sorts options with dotted names.
    pub fn new(map: BTreeMap<String, String>) -> Self {
        let mut tree = Self::default();
        let mut parts: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (key, value) in map {
            match part_of(&key) {
                Some((node, name)) => {
                    parts.entry(node.to_owned()).or_default().insert(name.to_owned(), value);
                }
                // The value alone is the name of a file; without one, there is no such node.
                None if BELOW.contains(&key.as_str()) && !value.is_empty() => {
                    parts.entry(key).or_default().insert("filename".to_owned(), value);
                }
                None => drop(tree.options.insert(key, value)),
            }
        }
        tree.below = parts.into_iter().map(|(k, v)| (k, Self::new(v))).collect();
        tree
    }

    /// Reads the options of `--image-opts`.
    pub fn from_options(text: &str) -> Self {
        Self::new(keys(text, "file"))
    }

    /// Reads what stands behind `json:`.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&double_quoted(text))
            .map_err(|e| format!("Could not parse the JSON options: {e}"))?;
        if !value.is_object() {
            return Err("Invalid JSON object given".to_owned());
        }
        let mut map = BTreeMap::new();
        flatten("", &value, &mut map);
        Ok(Self::new(map))
    }

    /// A file.
    pub fn file(name: &str) -> Self {
        let options = BTreeMap::from([("filename".to_owned(), name.to_owned())]);
        Self { options, ..Self::default() }
    }

    /// The description as JSON, as far as it says more than the name of a file and its format.
    pub fn shown(&self) -> Option<String> {
        /// Drivers that the name of a file stands for.
        const PLAIN: [&str; 2] = ["file", "host_device"];
        let plain_file = |t: &Self| {
            let plain = |(k, v): (&String, &String)| match k.as_str() {
                "driver" => PLAIN.contains(&v.as_str()),
                name => name == "filename",
            };
            t.below.is_empty() && t.options.iter().all(plain)
        };
        // What else is given of an image says nothing of which image it is, as QEMU sees it.
        let nodes = self.below.keys().filter(|k| *k != "data-file").count();
        let plain = match (nodes, self.below.get("file")) {
            (1, Some(file)) => plain_file(file) && self.options.keys().all(|k| k == "driver"),
            (0, _) => self.options.keys().all(|k| matches!(k.as_str(), "driver" | "filename")),
            _ => false,
        };
        (!plain).then(|| self.described())
    }

    /// The description as JSON, behind its mark.
    pub fn described(&self) -> String {
        format!("json:{}", self.json())
    }

    fn json(&self) -> Value {
        let mut map: serde_json::Map<String, Value> =
            self.options.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        map.extend(self.below.iter().map(|(k, t)| (k.clone(), t.json())));
        Value::Object(map)
    }

    /// An option.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// The name of the lowest file.
    pub fn filename(&self) -> Option<&str> {
        let below = || self.below.get("file").or(self.below.get("image"));
        self.get("filename").or_else(|| below()?.filename())
    }
}

/// `key=value,key=value`, where a first part without a key is the value of `first`; two commas stand for one.
pub fn keys(text: &str, first: &str) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    // The character cannot be in an argument.
    for (n, part) in text.replace(",,", "\0").split(',').enumerate() {
        let part = part.replace('\0', ",");
        match part.split_once('=') {
            Some((k, v)) => map.insert(k.to_owned(), v.to_owned()),
            None if n == 0 => map.insert(first.to_owned(), part),
            None if part.is_empty() => None,
            None => map.insert(part, "on".to_owned()),
        };
    }
    map
}

/// The keys of a JSON description, with dots between the levels.
fn flatten(prefix: &str, value: &Value, map: &mut BTreeMap<String, String>) {
    let join = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    match value {
        Value::Object(all) => all.iter().for_each(|(k, v)| flatten(&join(k), v, map)),
        Value::Array(all) => all.iter().enumerate().for_each(|(n, v)| flatten(&join(&n.to_string()), v, map)),
        Value::Bool(b) => drop(map.insert(prefix.to_owned(), if *b { "on" } else { "off" }.to_owned())),
        Value::String(s) => drop(map.insert(prefix.to_owned(), s.clone())),
        Value::Null => drop(map.insert(prefix.to_owned(), String::new())),
        Value::Number(n) => drop(map.insert(prefix.to_owned(), n.to_string())),
    }
}

/// JSON with strings in single quotes too, which QEMU takes, as plain JSON.
fn double_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => out.push('\''),
                Some(next) => out.extend(['\\', next]),
                None => out.push(c),
            },
            ('"' | '\'', None) => {
                quote = Some(c);
                out.push('"');
            }
            (c, Some(q)) if c == q => {
                quote = None;
                out.push('"');
            }
            ('"', Some(_)) => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions() {
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"x,y"},"backing":null}"#;
        let tree = Tree::from_json(&json[5..]).unwrap();
        assert_eq!((tree.get("driver"), tree.get("backing")), (Some("qcow2"), Some("")));
        assert_eq!(tree.filename(), Some("x,y"));
        let tree = Tree::from_options("driver=blkdebug,image.driver=raw,image.file.filename=x,,y,align=4k");
        assert_eq!(tree.filename(), Some("x,y"));
        assert_eq!(tree.below["image"].get("driver"), Some("raw"));
        assert_eq!(Tree::from_options("x.raw").filename(), Some("x.raw"));
        assert_eq!(Tree::from_json("{'file':{'filename':'a\"b'}}").unwrap().filename(), Some("a\"b"));
        let shown = |text: &str| Tree::from_options(text).shown();
        assert_eq!(shown("driver=qcow2,file.driver=file,file.filename=x"), None);
        assert_eq!(shown("driver=raw,filename=x"), None);
        let more = shown("driver=qcow2,file.filename=x,encrypt.key-secret=s").unwrap();
        assert_eq!(more, r#"json:{"driver":"qcow2","encrypt.key-secret":"s","file":{"filename":"x"}}"#);
        assert!(shown("driver=qcow2,file.driver=blkdebug,file.image.filename=x").is_some());
        assert!(Tree::from_json("{").is_err() && Tree::from_json("3").is_err());
    }
}
