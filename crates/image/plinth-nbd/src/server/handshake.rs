//! The fixed newstyle handshake (proto.md, "Newstyle negotiation").

use plinth_host::buffer::IoData;

use super::{Context, Export, Server, Session};
use crate::Error;
use crate::stream::{Reader, Writer, upgrade};
use crate::wire::*;

/// Options that a client may send before it gets to work.
const MAX_OPTIONS: usize = 1000;

struct Handshake<'a> {
    server: &'a Server,
    reader: Reader,
    writer: Writer,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    tls: bool,
    /// The export that the contexts were agreed on for, and they.
    contexts: Option<(String, Vec<Context>)>,
}

/// What the client wants next.
enum Next {
    Option,
    Tls,
    Work(std::rc::Rc<Export>),
    End,
}

pub async fn run(server: &Server, reader: Reader, writer: Writer) -> Result<Option<Session>, Error> {
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend(IHAVEOPT.to_be_bytes());
    hello.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    writer.send([IoData::copy_of(&hello)]).await?;
    let mut h = Handshake {
        server,
        reader,
        writer,
        no_zeroes: false,
        structured: false,
        extended: false,
        tls: false,
        contexts: None,
    };
    let flags = u32::from_be_bytes(h.reader.array().await?);
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(Error::protocol(format!("client flags {flags:#x}")));
    }
    h.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
    for _ in 0..MAX_OPTIONS {
        match h.option().await? {
            Next::Option => {}
            Next::End => {
                h.writer.close().await;
                return Ok(None);
            }
            Next::Tls => {
                let Some(config) = &server.tls else { continue };
                let tls = rustls::ServerConnection::new(config.clone())
                    .map_err(|e| Error::new(crate::ErrorKind::Tls, "cannot begin TLS", e))?;
                let (reader, writer) = upgrade(h.reader, h.writer, tls.into()).await?;
                // What was agreed on before could have been anybody's.
                h = Handshake {
                    reader,
                    writer,
                    tls: true,
                    structured: false,
                    extended: false,
                    contexts: None,
                    ..h
                };
            }
            Next::Work(export) => {
                let contexts = h.contexts.take().filter(|(name, _)| {
                    server.export(name).is_some_and(|e| std::rc::Rc::ptr_eq(&e, &export))
                });
                let contexts = contexts.map(|(_, c)| c).unwrap_or_default();
                let Handshake { reader, writer, structured, extended, .. } = h;
                return Ok(Some(Session { reader, writer, export, structured, extended, contexts }));
            }
        }
    }
    Err(Error::protocol(format!("more than {MAX_OPTIONS} options")))
}

/// Flags that tell a client what an export can do.
fn transmission_flags(export: &Export, structured: bool) -> u16 {
    let mut flags = SEND_HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CAN_MULTI_CONN | SEND_CACHE;
    if structured {
        flags |= SEND_DF;
    }
    if export.read_only { flags | SEND_READ_ONLY } else { flags | SEND_TRIM | SEND_WRITE_ZEROES }
}

impl Handshake<'_> {
    async fn reply(&self, option: u32, kind: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = REP_MAGIC.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        Ok(self.writer.send([IoData::copy_of(&message)]).await?)
    }

    async fn refuse(&self, option: u32, kind: u32, why: &str) -> Result<Next, Error> {
        self.reply(option, kind, why.as_bytes()).await?;
        Ok(Next::Option)
    }

    async fn option(&mut self) -> Result<Next, Error> {
        let magic = u64::from_be_bytes(self.reader.array().await?);
        if magic != IHAVEOPT {
            return Err(Error::protocol("an option does not begin with its mark"));
        }
        let option = u32::from_be_bytes(self.reader.array().await?);
        let len = u32::from_be_bytes(self.reader.array().await?);
        if len > MAX_OPTION {
            return Err(Error::protocol(format!("an option of {len} bytes")));
        }
        let data = self.reader.take(len as usize).await?;
        let only_tls = self.server.tls.is_some() && !self.tls;
        match option {
            OPT_EXPORT_NAME if only_tls => Err(Error::protocol("the client does not use TLS")),
            OPT_EXPORT_NAME => self.export_name(&data).await,
            OPT_ABORT => {
                // The client may have gone without waiting for the answer.
                let _ = self.reply(option, REP_ACK, &[]).await;
                Ok(Next::End)
            }
            OPT_STARTTLS if !data.is_empty() => self.refuse(option, REP_ERR_INVALID, "it has no data").await,
            OPT_STARTTLS if self.tls => self.refuse(option, REP_ERR_INVALID, "TLS is in use already").await,
            OPT_STARTTLS if self.server.tls.is_none() => {
                self.refuse(option, REP_ERR_POLICY, "this server has no TLS").await
            }
            OPT_STARTTLS => {
                self.reply(option, REP_ACK, &[]).await?;
                Ok(Next::Tls)
            }
            _ if only_tls => self.refuse(option, REP_ERR_TLS_REQD, "this server needs TLS").await,
            OPT_LIST if !data.is_empty() => self.refuse(option, REP_ERR_INVALID, "it has no data").await,
            OPT_LIST => self.list().await,
            OPT_INFO | OPT_GO => self.info(option, &data).await,
            OPT_STRUCTURED_REPLY if !data.is_empty() => {
                self.refuse(option, REP_ERR_INVALID, "it has no data").await
            }
            OPT_STRUCTURED_REPLY if self.extended => {
                self.refuse(option, REP_ERR_EXT_HEADER_REQD, "extended headers are in use already").await
            }
            OPT_EXTENDED_HEADERS if !data.is_empty() => {
                self.refuse(option, REP_ERR_INVALID, "it has no data").await
            }
            OPT_EXTENDED_HEADERS if self.extended => {
                self.refuse(option, REP_ERR_INVALID, "extended headers are in use already").await
            }
            OPT_EXTENDED_HEADERS => {
                // All replies are structured then.
                (self.structured, self.extended) = (true, true);
                self.reply(option, REP_ACK, &[]).await?;
                Ok(Next::Option)
            }
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                self.reply(option, REP_ACK, &[]).await?;
                Ok(Next::Option)
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, &data).await,
            _ => self.refuse(option, REP_ERR_UNSUP, "this server does not have it").await,
        }
    }

    /// The old way to choose an export: there is no way to refuse but to hang up.
    async fn export_name(&mut self, data: &[u8]) -> Result<Next, Error> {
        let name = std::str::from_utf8(data).map_err(|_| Error::protocol("a name that is not UTF-8"))?;
        let Some(export) = self.server.export(name) else {
            return Err(Error::protocol(format!("there is no export '{name}'")));
        };
        let mut message = export.node.size().to_be_bytes().to_vec();
        message.extend(transmission_flags(&export, self.structured).to_be_bytes());
        if !self.no_zeroes {
            message.extend([0; 124]);
        }
        self.writer.send([IoData::copy_of(&message)]).await?;
        Ok(Next::Work(export))
    }

    async fn list(&self) -> Result<Next, Error> {
        for export in &self.server.exports {
            let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
            data.extend(export.name.bytes());
            data.extend(export.description.bytes());
            self.reply(OPT_LIST, REP_SERVER, &data).await?;
        }
        self.reply(OPT_LIST, REP_ACK, &[]).await?;
        Ok(Next::Option)
    }

    async fn info(&self, option: u32, data: &[u8]) -> Result<Next, Error> {
        let mut p = Parser(data);
        let parsed = (|| {
            let name = p.text()?;
            let count = p.u16()?;
            let wanted = (0..count).map(|_| p.u16()).collect::<Option<Vec<_>>>()?;
            p.0.is_empty().then_some((name, wanted))
        })();
        let Some((name, wanted)) = parsed else {
            return self.refuse(option, REP_ERR_INVALID, "its data makes no sense").await;
        };
        let Some(export) = self.server.export(name) else {
            return self.refuse(option, REP_ERR_UNKNOWN, &format!("there is no export '{name}'")).await;
        };
        let mut item = INFO_EXPORT.to_be_bytes().to_vec();
        item.extend(export.node.size().to_be_bytes());
        item.extend(transmission_flags(&export, self.structured).to_be_bytes());
        self.reply(option, REP_INFO, &item).await?;
        if wanted.contains(&INFO_NAME) {
            let item = [&INFO_NAME.to_be_bytes(), export.name.as_bytes()].concat();
            self.reply(option, REP_INFO, &item).await?;
        }
        if wanted.contains(&INFO_DESCRIPTION) && !export.description.is_empty() {
            let item = [&INFO_DESCRIPTION.to_be_bytes(), export.description.as_bytes()].concat();
            self.reply(option, REP_INFO, &item).await?;
        }
        // Any byte can be asked for; larger requests at multiples of the preferred size are served better.
        let mut item = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [1, export.node.info().block.clamp(4096, MAX_PAYLOAD), MAX_PAYLOAD] {
            item.extend(size.to_be_bytes());
        }
        self.reply(option, REP_INFO, &item).await?;
        self.reply(option, REP_ACK, &[]).await?;
        Ok(if option == OPT_GO { Next::Work(export) } else { Next::Option })
    }

    async fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<Next, Error> {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            self.contexts = None;
            if !self.structured {
                return self.refuse(option, REP_ERR_INVALID, "it needs structured replies").await;
            }
        }
        let mut p = Parser(data);
        let parsed = (|| {
            let name = p.text()?.to_owned();
            let count = p.u32()?;
            let queries = (0..count).map(|_| p.text()).collect::<Option<Vec<_>>>()?;
            p.0.is_empty().then_some((name, queries))
        })();
        let Some((name, queries)) = parsed else {
            return self.refuse(option, REP_ERR_INVALID, "its data makes no sense").await;
        };
        let Some(export) = self.server.export(&name) else {
            return self.refuse(option, REP_ERR_UNKNOWN, &format!("there is no export '{name}'")).await;
        };
        let mut all = vec![(BASE_ALLOCATION.to_owned(), Context::Allocation)];
        all.push((ALLOCATION_DEPTH.to_owned(), Context::Depth));
        let bitmaps = export.bitmaps.iter().enumerate();
        all.extend(bitmaps.map(|(n, (name, _))| (format!("{DIRTY_BITMAP}{name}"), Context::Bitmap(n))));
        let wanted = |name: &str| {
            // Without a query a list is of all; a query that ends with a colon asks for all below.
            let below = |q: &str| !set && q.ends_with(':') && name.starts_with(q);
            (!set && queries.is_empty()) || queries.iter().any(|q| *q == name || below(q))
        };
        let mut chosen = Vec::new();
        for (name, context) in all.into_iter().filter(|(name, _)| wanted(name)) {
            let id = if set { chosen.len() as u32 + 1 } else { 0 };
            self.reply(option, REP_META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()].concat()).await?;
            chosen.push(context);
        }
        if set {
            self.contexts = Some((name, chosen));
        }
        self.reply(option, REP_ACK, &[]).await?;
        Ok(Next::Option)
    }
}
