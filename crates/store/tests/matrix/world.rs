//! Tenants of both strategies, each with a row in every table of its place, and a row of somebody else beside it.

use bulkhead_bus::Tenant;
use bulkhead_store::{Inspection, Service, Store};
use bulkhead_testkit::TestDatabase;
use bulkhead_testkit::database::{account_key, enterprise, tenant};
use bulkhead_testkit::sql::run;
use sqlx::{Connection, PgConnection};

use crate::cells::{Door, Report, Way, Who, check_raw, check_tx};
use crate::table::{Table, tenant_tables};

pub(crate) struct World {
    pub(crate) database: TestDatabase,
    stores: Vec<(Service, Store)>,
    /// Two in the shared tables, and two with a schema each.
    pub(crate) tenants: [Tenant; 4],
    /// Those of every place, with their partitions.
    pub(crate) tables: Vec<Table>,
}

impl World {
    pub(crate) async fn start() -> Self {
        let database = TestDatabase::start().await.unwrap();
        let provisioning = database.provisioning().await.unwrap();
        let core = database.store().await.unwrap();
        let tenants = [tenant("acme-corp"), tenant("xyz-inc"), enterprise("big-bank"), enterprise("cargo-line")];
        for tenant in &tenants {
            provisioning.put_tenant(&account_key(), tenant).await.unwrap();
            let mut tx = core.begin(tenant).await.unwrap();
            run(&mut tx.connection(), "select ensure_result_partition(current_date)").await.unwrap();
            tx.commit().await.unwrap();
        }
        let inspection = Inspection::connect(&database.provision_url()).await.unwrap();
        let rights = inspection.rights().await.unwrap();
        let mut superuser = database.superuser().await.unwrap();
        let tables = tenant_tables(&mut superuser, &rights.expected).await;
        let mut stores = vec![(Service::Core, core)];
        for service in [Service::Registry, Service::Dispatch] {
            stores.push((service, database.store_of(service).await.unwrap()));
        }
        let world = Self { database, stores, tenants, tables };
        for table in world.parents() {
            let (owner, other) = world.owners(table);
            for tenant in [owner, other] {
                run(&mut superuser, &table.insert(&table.name, tenant, "seed")).await.unwrap();
            }
        }
        world
    }

    pub(crate) fn store(&self, service: Service) -> &Store {
        self.stores.iter().find(|(known, _)| *known == service).map(|(_, store)| store).unwrap()
    }

    pub(crate) fn parents(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.is_partition)
    }

    pub(crate) fn table(&self, name: &str) -> &Table {
        self.tables.iter().find(|table| table.name == name).unwrap()
    }

    pub(crate) fn schema_of(&self, tenant: &Tenant) -> String {
        if tenant.plan == "enterprise" {
            format!("tenant_{}", tenant.slug).replace('-', "_")
        } else {
            "shared".to_owned()
        }
    }

    /// Whose rows are looked at in a table, and somebody else of the same strategy.
    pub(crate) fn owners(&self, table: &Table) -> (&Tenant, &Tenant) {
        let [acme, xyz, bank, cargo] = &self.tenants;
        match table.schema.as_str() {
            "shared" => (acme, xyz),
            "tenant_big_bank" => (bank, cargo),
            "tenant_cargo_line" => (cargo, bank),
            other => panic!("{other} holds a tenant's id, and nobody here knows whose"),
        }
    }

    /// The connection of whoever provisions, who may become the owner.
    pub(crate) async fn provision(&self) -> PgConnection {
        PgConnection::connect(&self.database.provision_url()).await.unwrap()
    }

    /// One table against everybody: services and the owner without the store's care, and every tenant's transaction of each service
    /// in each of `ways`.
    pub(crate) async fn check(&self, report: &mut Report, table: &Table, ways: &[Way]) {
        let mut provision = self.provision().await;
        for who in Who::ALL {
            check_raw(report, &mut provision, self, table, (Door::Owner, who)).await;
        }
        for service in Service::ALL {
            let mut bare = self.database.bare(service).await.unwrap();
            for who in Who::ALL {
                check_raw(report, &mut bare, self, table, (Door::Service(service), who)).await;
            }
            for from in &self.tenants {
                for way in ways {
                    check_tx(report, self, table, (service, from, *way)).await;
                }
            }
        }
    }
}
