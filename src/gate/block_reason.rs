//! Why the gate is closed, and what an operator can do.

/// Why no request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockReason {
    /// Failures in a row; probes are sent.
    Outage,
    /// The endpoint is wrong; probes are sent, an operator is needed.
    Misconfigured,
    /// No token is usable, at least one of them for its quota.
    Quota,
    /// The CRM refuses every token; an operator is needed.
    Unauthorized,
    /// The ledger cannot be used.
    Ledger,
}

impl BlockReason {
    /// Every reason, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Outage, Self::Misconfigured, Self::Quota, Self::Unauthorized, Self::Ledger];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Misconfigured => "misconfigured",
            Self::Quota => "quota",
            Self::Unauthorized => "unauthorized",
            Self::Ledger => "ledger",
        }
    }

    /// What an operator must know or do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Outage => {
                "the CRM fails; the worker tries one message at a time until the CRM answers, and no message is lost"
            }
            Self::Misconfigured => "the CRM does not know this address: check crm.server and crm.operation",
            Self::Quota => "the daily quota of every usable token is used up; the worker goes on after its reset",
            Self::Unauthorized => "the CRM refuses every token: check crm.tokens and crm.operation",
            Self::Ledger => "the ledger cannot be read or written: check ledger.url, its disk or its server",
        }
    }
}
