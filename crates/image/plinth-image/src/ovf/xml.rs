//! An envelope as a tree of elements, bounded in every direction.
//!
//! Names are without their prefixes: producers choose these freely, and no two that matter here collide.

use std::ops::Range;

use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

/// Bytes of an envelope at most.
pub const MAX_LEN: usize = 4 << 20;
const MAX_DEPTH: usize = 64;
const MAX_ELEMENTS: usize = 100_000;

/// One element.
#[derive(Debug, Default)]
pub struct Element {
    pub name: String,
    /// What its prefix stands for, if the element itself says so; else empty.
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

/// Reads a document.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(text: &str) -> Result<Element, String> {
    if text.len() > MAX_LEN {
        return Err(format!("it has {} bytes, and {MAX_LEN} are the most", text.len()));
    }
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = vec![Element::default()];
    let mut count = 0;
    loop {
        let before = reader.buffer_position() as usize;
        let event = reader.read_event().map_err(|e| e.to_string())?;
        let after = reader.buffer_position() as usize;
        match event {
            Event::Eof => break,
            Event::Start(start) => {
                count += 1;
                if open.len() > MAX_DEPTH || count > MAX_ELEMENTS {
                    return Err("it has too many elements, or too deep ones".to_owned());
                }
                open.push(element(&start, before)?);
            }
            Event::Empty(start) => {
                count += 1;
                if count > MAX_ELEMENTS {
                    return Err("it has too many elements".to_owned());
                }
                let mut element = element(&start, before)?;
                element.place.end = after;
                if let Some(parent) = open.last_mut() {
                    parent.children.push(element);
                }
            }
            Event::End(_) => {
                let Some(mut done) = open.pop().filter(|_| !open.is_empty()) else {
                    return Err("an element ends that did not begin".to_owned());
                };
                done.place.end = after;
                if let Some(parent) = open.last_mut() {
                    parent.children.push(done);
                }
            }
            Event::Text(t) => add(&mut open, &t.xml10_content()),
            Event::CData(t) => add(&mut open, &t.xml10_content()),
            Event::GeneralRef(r) => {
                let name: &str = &r;
                let character = match r.resolve_char_ref() {
                    Ok(Some(c)) => c.to_string(),
                    _ => quick_xml::escape::resolve_predefined_entity(name)
                        .ok_or_else(|| format!("the entity '{}' is not known", short(name)))?
                        .to_owned(),
                };
                add(&mut open, &character);
            }
            Event::DocType(_) => return Err("it has a document type, which no envelope has".to_owned()),
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
        }
    }
    if open.len() != 1 {
        return Err("it ends before its elements do".to_owned());
    }
    let root = open.pop().and_then(|mut top| top.children.pop());
    root.ok_or_else(|| "it has no element".to_owned())
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn element(start: &BytesStart<'_>, at: usize) -> Result<Element, String> {
    let mut element =
        Element { name: start.local_name().as_ref().to_owned(), place: at..at, ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        let value = quick_xml::escape::unescape(&attribute.value).map_err(|e| e.to_string())?.into_owned();
        if attribute.key.as_namespace_binding().is_some() {
            element.namespaces.push(value);
        } else {
            element.attributes.push((attribute.key.local_name().as_ref().to_owned(), value));
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
