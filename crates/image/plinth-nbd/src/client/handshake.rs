//! The handshake: what client and server agree on before the first request.

use std::collections::HashMap;

use plinth_host::buffer::IoData;
use rustls::pki_types::ServerName;

use super::Options;
use crate::stream::{Reader, Writer, upgrade};
use crate::uri::{Address, Uri};
use crate::wire::*;
use crate::{Error, ErrorKind};

/// What the handshake found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    pub size: u64,
    pub flags: u16,
    pub min_block: u32,
    pub max_payload: u32,
    pub structured: bool,
    pub extended: bool,
    /// Numbers of metadata contexts, by name.
    pub contexts: HashMap<String, u32>,
}

/// A connection whose options are not agreed yet.
pub struct Handshake {
    pub reader: Reader,
    pub writer: Writer,
    pub agreed: Agreed,
}

impl Handshake {
    /// Greets.
    pub async fn hello(&mut self) -> Result<(), Error> {
        let magic = u64::from_be_bytes(self.reader.array().await?);
        let version = u64::from_be_bytes(self.reader.array().await?);
        if magic != MAGIC || version != IHAVEOPT {
            return Err(Error::protocol(
                "it does not greet as an NBD server does (the oldstyle handshake is not supported)",
            ));
        }
        let flags = u16::from_be_bytes(self.reader.array().await?);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(Error::protocol("it has only the old handshake that was not fixed"));
        }
        let flags = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        Ok(self.writer.send([IoData::copy_of(&flags.to_be_bytes())]).await?)
    }

    async fn send(&self, option: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = IHAVEOPT.to_be_bytes().to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        Ok(self.writer.send([IoData::copy_of(&message)]).await?)
    }

    /// The next reply to an option: its kind and data.
    async fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>), Error> {
        let magic = u64::from_be_bytes(self.reader.array().await?);
        let about = u32::from_be_bytes(self.reader.array().await?);
        let kind = u32::from_be_bytes(self.reader.array().await?);
        let len = u32::from_be_bytes(self.reader.array().await?);
        if magic != REP_MAGIC || about != option || len > MAX_OPTION {
            return Err(Error::protocol("a reply to an option makes no sense"));
        }
        Ok((kind, self.reader.take(len as usize).await?))
    }

    /// Goes on encrypted.
    pub async fn start_tls(mut self, uri: &Uri, options: &Options) -> Result<Self, Error> {
        let tls = |why: String| Error::new(ErrorKind::Tls, "TLS cannot be used", why);
        let config =
            options.tls.clone().ok_or_else(|| tls("no certificate of an authority was given".to_owned()))?;
        let host = match &uri.address {
            Address::Tcp(host, _) => host.clone(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let name = ServerName::try_from(host).map_err(|e| tls(e.to_string()))?;
        self.send(OPT_STARTTLS, &[]).await?;
        let (kind, why) = self.reply(OPT_STARTTLS).await?;
        if kind != REP_ACK {
            return Err(refused(kind, &why, "the server does not begin TLS"));
        }
        let connection = rustls::ClientConnection::new(config, name).map_err(|e| tls(e.to_string()))?;
        let (reader, writer) =
            upgrade(self.reader, self.writer, connection.into()).await.map_err(|source| Error {
                kind: ErrorKind::Tls,
                context: "TLS with the server failed".to_owned(),
                source,
            })?;
        Ok(Self { reader, writer, ..self })
    }

    /// Agrees on what the server has of what is wanted, and opens the export.
    pub async fn choose(&mut self, export: &str, options: &Options) -> Result<(), Error> {
        self.send(OPT_EXTENDED_HEADERS, &[]).await?;
        self.agreed.extended = self.reply(OPT_EXTENDED_HEADERS).await?.0 == REP_ACK;
        self.agreed.structured = self.agreed.extended;
        if !self.agreed.extended {
            self.send(OPT_STRUCTURED_REPLY, &[]).await?;
            self.agreed.structured = self.reply(OPT_STRUCTURED_REPLY).await?.0 == REP_ACK;
        }
        let named = |rest: &[u8]| [&(export.len() as u32).to_be_bytes(), export.as_bytes(), rest].concat();
        if self.agreed.structured {
            let wanted: Vec<&str> =
                std::iter::once(BASE_ALLOCATION).chain(options.bitmap.as_deref()).collect();
            let mut data = (wanted.len() as u32).to_be_bytes().to_vec();
            for query in wanted {
                data.extend((query.len() as u32).to_be_bytes());
                data.extend(query.bytes());
            }
            self.send(OPT_SET_META_CONTEXT, &named(&data)).await?;
            loop {
                let (kind, data) = self.reply(OPT_SET_META_CONTEXT).await?;
                if kind != REP_META_CONTEXT {
                    break;
                }
                let mut p = Parser(&data);
                if let (Some(id), Ok(name)) = (p.u32(), String::from_utf8(p.0.to_vec()))
                    && self.agreed.contexts.len() < 16
                {
                    self.agreed.contexts.insert(name, id);
                }
            }
        }
        let ask = [&1u16.to_be_bytes()[..], &INFO_BLOCK_SIZE.to_be_bytes()].concat();
        self.send(OPT_GO, &named(&ask)).await?;
        let mut seen = false;
        loop {
            let (kind, data) = self.reply(OPT_GO).await?;
            match kind {
                REP_INFO => seen |= self.info(&data)?,
                REP_ACK if seen => return Ok(()),
                REP_ACK => return Err(Error::protocol("it does not say how large the export is")),
                REP_ERR_UNSUP => return self.choose_old(export).await,
                REP_ERR_TLS_REQD => {
                    return Err(refused(kind, &data, "it needs TLS: use an address that begins with nbds:"));
                }
                _ => return Err(refused(kind, &data, "it does not open the export")),
            }
        }
    }

    /// True if it told the size.
    fn info(&mut self, data: &[u8]) -> Result<bool, Error> {
        let mut p = Parser(data);
        match p.u16() {
            Some(INFO_EXPORT) => {
                let short = || Error::protocol("what it says of the export is too short");
                let size = p.u64().ok_or_else(short)?;
                self.set_size(size, p.u16().ok_or_else(short)?)?;
                Ok(true)
            }
            Some(INFO_BLOCK_SIZE) => {
                if let (Some(min), Some(_), Some(max)) = (p.u32(), p.u32(), p.u32()) {
                    if !min.is_power_of_two() || min > 1 << 16 || max < min {
                        return Err(Error::protocol(format!("blocks of {min} to {max} bytes")));
                    }
                    (self.agreed.min_block, self.agreed.max_payload) = (min, max);
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn set_size(&mut self, size: u64, flags: u16) -> Result<(), Error> {
        if size > i64::MAX as u64 {
            return Err(Error::protocol(format!("an export of {size} bytes")));
        }
        (self.agreed.size, self.agreed.flags) = (size, flags);
        Ok(())
    }

    /// For servers that do not know the newer way. They hang up when they refuse.
    async fn choose_old(&mut self, export: &str) -> Result<(), Error> {
        self.send(OPT_EXPORT_NAME, export.as_bytes()).await?;
        let size = u64::from_be_bytes(self.reader.array().await?);
        let flags = u16::from_be_bytes(self.reader.array().await?);
        self.set_size(size, flags)
    }
}

fn refused(kind: u32, why: &[u8], what: &str) -> Error {
    let why = String::from_utf8_lossy(why);
    let why = match kind {
        REP_ERR_UNKNOWN if why.is_empty() => "there is no such export".to_owned(),
        _ if why.is_empty() => format!("it answers with error {:#x}", kind & !REP_FLAG_ERROR),
        // From a stranger: without what could steer a terminal.
        _ => why.chars().filter(|c| !c.is_control()).collect(),
    };
    Error::new(ErrorKind::Refused, what, why)
}
