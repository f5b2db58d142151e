//! Checks exchanges: whether each exists with its type, and may be bound to. AMQP cannot list bindings.

use std::collections::BTreeSet;

use super::{Findings, Severity};
use crate::broker::bindings::{Bindings, has_other_type, missing, permission};
use crate::broker::connect::BrokerError;
use crate::broker::inspect::Inspection;
use crate::config::{Config, ExchangeType, TopologyMode};

const CHECK: &str = "broker.exchange";

pub(super) async fn check(inspection: &Inspection, config: &Config, bindings: &Bindings) -> Findings {
    let mut findings = Findings::default();
    let declares = config.broker.topology == TopologyMode::Declare;
    for (name, exchange_type) in &bindings.exchanges {
        exchange(inspection, name, *exchange_type, declares, &mut findings).await;
    }
    if declares {
        permissions(inspection, bindings, &mut findings).await;
    }
    if !bindings.bindings.is_empty() {
        let many = bindings.bindings.len();
        match declares {
            true => findings.ok(
                CHECK,
                format!(
                    "bindings: {many}, declared at start. One that is taken out of the configuration stays in RabbitMQ"
                ),
            ),
            false => findings.warning(
                CHECK,
                format!("bindings: {many}, not verified: AMQP has no way to list bindings"),
                "look at them with rabbitmqctl list_bindings, or at the queue's page in RabbitMQ's management",
            ),
        }
    }
    findings
}

/// Checks whether each binding may be declared. An error that several bindings share is reported once.
async fn permissions(inspection: &Inspection, bindings: &Bindings, findings: &mut Findings) {
    let mut refused = BTreeSet::new();
    for binding in &bindings.bindings {
        let asked = inspection.may_bind(&bindings.queue, &binding.exchange, &binding.routing_key);
        if let Err(error) = asked.await
            && refused.insert(error.message.clone())
        {
            let advice = permission(&error.message, &bindings.queue, binding);
            findings.problem(CHECK, error.message, advice);
        }
    }
}

async fn exchange(
    inspection: &Inspection,
    name: &str,
    exchange_type: Option<ExchangeType>,
    declares: bool,
    findings: &mut Findings,
) {
    match (inspection.has_exchange(name).await, exchange_type) {
        (Ok(true), Some(wanted)) => match inspection.is_exchange_of(name, wanted).await {
            Ok(()) => findings.ok(CHECK, format!("{name} is there, of the type {}", wanted.as_str())),
            Err(error) if error.code == Some(BrokerError::PRECONDITION_FAILED) => findings.problem(
                CHECK,
                format!("{name} is not a durable exchange of the type {}: {}", wanted.as_str(), error.message),
                match has_other_type(&error.message) {
                    true => "give its type in [[broker.bindings]], or leave type out",
                    false => "leave type out in [[broker.bindings]], so that the worker uses the exchange unchanged",
                },
            ),
            Err(error) if error.code == Some(BrokerError::ACCESS_REFUSED) => findings.add(
                CHECK,
                if declares { Severity::Problem } else { Severity::Ok },
                &format!("{name} is there; its type is not checked, because the user may not configure it"),
                declares.then_some("permit the user to configure it, or leave type out in [[broker.bindings]]"),
            ),
            Err(error) => findings.problem(CHECK, error.message, "look for this error in the log of the RabbitMQ node"),
        },
        (Ok(true), None) => findings.ok(CHECK, format!("{name} is there")),
        (Ok(false), Some(wanted)) if declares => match inspection.may_declare_exchange(name, wanted).await {
            Ok(()) => findings
                .ok(CHECK, format!("{name} is not there yet; the worker declares it, of the type {}", wanted.as_str())),
            Err(error) => findings.problem(
                CHECK,
                format!("{name} is not there, and the worker cannot declare it: {}", error.message),
                "permit the user to configure it, or create the exchange",
            ),
        },
        (Ok(false), _) if declares => {
            let message = missing(name, TopologyMode::Declare);
            findings.problem(CHECK, message, "create the exchange, or give its type");
        }
        (Ok(false), _) => findings.problem(CHECK, missing(name, TopologyMode::Verify), ""),
        (Err(error), _) => findings.problem(
            CHECK,
            error.message,
            "look for this error in the log of the RabbitMQ node; this exchange cannot be used",
        ),
    }
}
