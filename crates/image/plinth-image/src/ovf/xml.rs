//! An envelope as a tree of elements, bounded in every direction.
//!
//! Names are without their prefixes: producers choose these freely, and no two that matter here collide.

use std::ops::Range;

use roxmltree::{Document, Node as Xml, ParsingOptions};

/// Bytes of an envelope at most.
pub const MAX_LEN: usize = 4 << 20;
const MAX_DEPTH: usize = 64;
/// Elements, texts and comments.
const MAX_NODES: u32 = 200_000;

/// One element.
#[derive(Debug, Default)]
pub struct Element {
    pub name: String,
    /// What prefixes stand for within it.
    pub namespaces: Vec<String>,
    attributes: Vec<(String, String)>,
    pub children: Vec<Element>,
    /// Text of its own, without that of its children.
    text: String,
    /// Where it is in the document.
    pub place: Range<usize>,
}

impl Element {
    /// An attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|a| a.0 == name).map(|a| a.1.as_str())
    }

    /// Children of this name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |c| c.name == name)
    }

    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|c| c.name == name)
    }

    /// The text of the first child of this name, if there is any.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|c| c.text.trim()).filter(|t| !t.is_empty())
    }

    /// The first element of this name at any depth.
    pub fn find(&self, name: &str) -> Option<&Element> {
        self.children.iter().find_map(|c| if c.name == name { Some(c) } else { c.find(name) })
    }
}

/// A text as it is written into a document, in an element or an attribute. What XML cannot have at all becomes a
/// replacement character.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

/// Reads a document.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(text: &str) -> Result<Element, String> {
    if text.len() > MAX_LEN {
        return Err(format!("it has {} bytes, and {MAX_LEN} are the most", text.len()));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
    element(document.root_element(), 1)
}

fn element(node: Xml<'_, '_>, depth: usize) -> Result<Element, String> {
    if depth > MAX_DEPTH {
        return Err("it has elements that are too deep".to_owned());
    }
    let mut element = Element {
        name: node.tag_name().name().to_owned(),
        namespaces: node.namespaces().map(|n| n.uri().to_owned()).collect(),
        attributes: node.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())).collect(),
        place: node.range(),
        ..Element::default()
    };
    for child in node.children() {
        if child.is_element() {
            element.children.push(self::element(child, depth + 1)?);
        } else if child.is_text() {
            element.text.push_str(child.text().unwrap_or_default());
        }
    }
    Ok(element)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_trees() {
        let e = parse(
            "<?xml version='1.0'?><a:x xmlns:a='n'><b q='1&lt;'>t&amp;&#65;<![CDATA[<]]></b><b/></a:x>",
        )
        .unwrap();
        assert_eq!((e.name.as_str(), e.namespaces[0].as_str(), e.all("b").count()), ("x", "n", 2));
        assert_eq!((e.text_of("b"), e.child("b").unwrap().attribute("q")), (Some("t&A<"), Some("1<")));
    }

    #[test]
    fn hostile_documents_are_refused() {
        let deep = "<a>".repeat(1000);
        for text in
            ["", "<a>", "</a>", "<a></b>", "<!DOCTYPE x [<!ENTITY e 'x'>]><a>&e;</a>", "<a>&e;</a>", &deep]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"<a/>".repeat(MAX_LEN / 4 + 1)).is_err());
    }
}
