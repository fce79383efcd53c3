//! Replies held against the description of their interface, which the `varlink` crate itself does not do.

use std::collections::BTreeSet;

use serde_json::Value;
use varlink_parser::{IDL, VStruct, VStructOrEnum, VType, VTypeExt};

/// An interface, as its description says.
pub struct Interface<'a>(IDL<'a>);

impl<'a> Interface<'a> {
    pub fn new(description: &'a str) -> Self {
        Self(IDL::try_from(description).expect("it is Varlink"))
    }

    /// The names of all methods.
    pub fn methods(&self) -> &[&'a str] {
        &self.0.method_keys
    }

    /// Everything that the interface has: each field of a type, a method or an error with its kind, each value of an
    /// enumeration.
    pub fn facts(&self) -> BTreeSet<String> {
        let mut facts = BTreeSet::new();
        for (name, kind) in &self.0.typedefs {
            match &kind.elt {
                VStructOrEnum::VStruct(fields) => put(&mut facts, name, fields),
                VStructOrEnum::VEnum(values) => facts.extend(values.elts.iter().map(|one| format!("{name}: {one}"))),
            }
        }
        for (name, method) in &self.0.methods {
            facts.insert(format!("method {name}"));
            put(&mut facts, &format!("{name}()"), &method.input);
            put(&mut facts, name, &method.output);
        }
        for (name, error) in &self.0.errors {
            facts.insert(format!("error {name}"));
            put(&mut facts, name, &error.parm);
        }
        facts
    }

    /// What is wrong with the parameters of a call.
    pub fn faults_of_call(&self, method: &str, parameters: &Value) -> Vec<String> {
        strange(&self.0, &self.0.methods[method].input, parameters, method)
    }

    /// What is wrong with the parameters of a reply.
    pub fn faults_of_reply(&self, method: &str, parameters: &Value) -> Vec<String> {
        strange(&self.0, &self.0.methods[method].output, parameters, method)
    }

    /// What is wrong with the parameters of an error.
    pub fn faults_of_error(&self, error: &str, parameters: &Value) -> Vec<String> {
        strange(&self.0, &self.0.errors[error].parm, parameters, error)
    }
}

fn put(facts: &mut BTreeSet<String>, of: &str, fields: &VStruct<'_>) {
    for field in &fields.elts {
        match &field.vtype {
            VTypeExt::Plain(VType::Enum(values)) => {
                facts.extend(values.elts.iter().map(|one| format!("{of}.{}: {one}", field.name)));
            }
            kind => {
                facts.insert(format!("{of}.{}: {kind}", field.name));
            }
        }
    }
}

/// What in `value` is not as `fields` say, or is not mentioned there.
fn strange(idl: &IDL<'_>, fields: &VStruct<'_>, value: &Value, at: &str) -> Vec<String> {
    let Some(object) = value.as_object() else { return vec![format!("{at}: no object: {value}")] };
    let mut faults: Vec<String> = Vec::new();
    for field in &fields.elts {
        let at = format!("{at}.{}", field.name);
        match object.get(field.name) {
            Some(value) => faults.extend(unlike(idl, &field.vtype, value, &at)),
            None if matches!(field.vtype, VTypeExt::Option(_)) => {}
            None => faults.push(format!("{at} is missing")),
        }
    }
    let known = |key: &&String| fields.elts.iter().any(|field| field.name == key.as_str());
    faults.extend(object.keys().filter(|key| !known(key)).map(|key| format!("{at}.{key} is not described")));
    faults
}

fn unlike(idl: &IDL<'_>, kind: &VTypeExt<'_>, value: &Value, at: &str) -> Vec<String> {
    let wrong = |fine: bool| if fine { Vec::new() } else { vec![format!("{at} is {value}")] };
    match kind {
        VTypeExt::Option(inner) if !value.is_null() => unlike(idl, inner, value, at),
        VTypeExt::Option(_) => Vec::new(),
        VTypeExt::Array(inner) => {
            let all = value.as_array().unwrap_or_else(|| panic!("{at} is {value}"));
            all.iter().flat_map(|one| unlike(idl, inner, one, at)).collect()
        }
        VTypeExt::Dict(_) => wrong(false),
        VTypeExt::Plain(VType::Bool) => wrong(value.is_boolean()),
        VTypeExt::Plain(VType::Int) => wrong(value.is_i64()),
        VTypeExt::Plain(VType::Float) => wrong(value.is_f64()),
        VTypeExt::Plain(VType::String) => wrong(value.is_string()),
        VTypeExt::Plain(VType::Object) => wrong(value.is_object()),
        VTypeExt::Plain(VType::Struct(fields)) => strange(idl, fields, value, at),
        VTypeExt::Plain(VType::Enum(words)) => wrong(words.elts.iter().any(|word| value == word)),
        VTypeExt::Plain(VType::Typename(name)) => match &idl.typedefs[name].elt {
            VStructOrEnum::VStruct(fields) => strange(idl, fields, value, at),
            VStructOrEnum::VEnum(words) => wrong(words.elts.iter().any(|word| value == word)),
        },
    }
}
