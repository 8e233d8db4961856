//! Operators' tokens: the right to use the HTTP API, to the extent of a role. The store keeps a hash.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use pillion_config::DurationText;
use pillion_model::name::check_label;
use pillion_net::tls::{hex, sha256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::token::{TokenError, Tokens, millis, moment, random};
use crate::store::{Key, Op, Space, StoreError, Transaction};

/// What may be done; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Look at everything that is no secret.
    Read,
    /// Change resources and instances.
    Write,
    /// Tokens, the authority, snapshots and the audit log.
    Admin,
}

/// An operator's token to make.
#[derive(Clone, Debug)]
pub struct NewOperator {
    /// Who will have it: an RFC 1123 label.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// How long; 1 min to 366 days.
    pub ttl: Duration,
}

/// What people may know of an operator's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorInfo {
    /// Who has it.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// When it was made.
    pub created: SystemTime,
    /// When it ends.
    pub expires: SystemTime,
}

/// As the store keeps it; moments in Unix milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kept {
    secret_sha256: String,
    role: Role,
    created: u64,
    expires: u64,
}

impl Role {
    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let roles = [Self::Read, Self::Write, Self::Admin];
        let role = roles.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| format!("got `{text}`, want read, write or admin"))
    }
}

impl Tokens {
    /// Makes an operator's token, in place of one of the same name. Its secret can be seen only now.
    ///
    /// # Errors
    ///
    /// [`TokenError`] about the lifetime, the name, the number of tokens, or the store.
    pub async fn create_operator(&self, new: NewOperator) -> Result<(String, OperatorInfo), TokenError> {
        if !(super::token::TTL_MIN..=super::token::TTL_MAX).contains(&new.ttl) {
            return Err(TokenError::Ttl { got: DurationText(new.ttl) });
        }
        check_label(&new.name).map_err(|error| TokenError::Name { field: "name", error })?;
        if self.operators().len() >= OPERATORS_MAX {
            return Err(TokenError::TooMany);
        }
        let now = self.now();
        let secret = hex(&random::<32>());
        let kept = Kept {
            secret_sha256: hex(&sha256(secret.as_bytes())),
            role: new.role,
            created: millis(now),
            expires: millis(now + new.ttl),
        };
        let info = kept.info(&new.name);
        let value = serde_json::to_vec(&kept).expect("plain fields have a JSON form");
        self.write(Op::put(key(&new.name), value)).await?;
        Ok((secret, info))
    }

    /// Every operator's token but the one that each registry makes at its first start, by name.
    pub fn operators(&self) -> Vec<OperatorInfo> {
        self.kept_operators().into_iter().map(|(name, kept)| kept.info(&name)).collect()
    }

    /// Whose token this is (by its hash, hex), and what it is good for.
    pub fn operator(&self, secret_sha256: &str) -> Option<OperatorInfo> {
        let now = millis(self.now());
        let all = self.kept_operators().into_iter();
        let mut good = all.filter(|(_, kept)| kept.secret_sha256 == secret_sha256 && now < kept.expires);
        good.next().map(|(name, kept)| kept.info(&name))
    }

    /// Deletes an operator's token; `false` if there is none of this name.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn delete_operator(&self, name: &str) -> Result<bool, StoreError> {
        if !self.operators().iter().any(|operator| operator.name == name) {
            return Ok(false);
        }
        self.write(Op::delete(key(name))).await?;
        Ok(true)
    }

    async fn write(&self, op: Op) -> Result<(), StoreError> {
        let mut transaction = Transaction::default();
        transaction.push(op);
        self.commit(transaction).await
    }
}

impl Kept {
    fn info(&self, name: &str) -> OperatorInfo {
        let (created, expires) = (moment(self.created), moment(self.expires));
        OperatorInfo { name: name.to_owned(), role: self.role, created, expires }
    }
}

fn key(name: &str) -> Key {
    Key::new(Space::Token, format!("{OPERATOR}{name}"))
}

/// In front of an operator's name, among the tokens in the store.
pub(super) const OPERATOR: &str = "operator/";
const OPERATORS_MAX: usize = 1000;
