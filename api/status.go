package api

import (
	"time"

	storage "github.com/storaged/storaged"
)

// Status sums a cluster up.
type Status struct {
	ClusterID storage.ClusterID
	// Version is the version of the cluster that is in force, 0: not known. VersionKnown is the newest that every node knows, 0: not
	// known, because a node was not heard.
	Version      int
	VersionKnown int
	Health       Health
	// Reasons say why Health is not HealthOK, the worst first.
	Reasons []Reason
	// Warnings say what will make it so if nothing is done; they are no part of Health, and their Severity is HealthOK.
	Warnings []Reason
	// ReplicasWanted is the number of replicas that every group is meant to have.
	ReplicasWanted int
	NodesTotal     int
	NodesUp        int
	GroupsTotal    int
	// GroupsFull counts the groups that have all the voters they are meant to have, all up.
	GroupsFull          int
	GroupsWithoutLeader int
	Volumes             int
	// ProvisionedBytes is the sum of the volumes' sizes; the other sizes are sums over all stores.
	ProvisionedBytes int64
	// UsableBytes is how much data the stores hold with all copies, were they empty; 0: not known.
	UsableBytes   int64
	CapacityBytes int64
	UsedBytes     int64
	FreeBytes     int64
	// GarbageBytes is what compaction can win back, of the stores that tell it.
	GarbageBytes int64
	// Fullest is the store that is the first to refuse new data; nil while no store tells.
	Fullest *StoreRoom
	// Compacting are the stores whose compaction makes room.
	Compacting []StoreRoom
	// StoresUnknown counts the stores whose nodes were not heard: what is used and free there is not known, and not in the sums.
	StoresUnknown int
	// Tasks are the replicas on their way into their groups.
	Tasks []Task
	// CatalogLeader is the node that leads the catalog; 0 when nobody does.
	CatalogLeader     storage.NodeID
	CatalogLeaderName string
	CatalogTerm       uint64
	CatalogIndex      uint64
	// AnsweredBy is the node that answers, from what it knew Age ago.
	AnsweredBy     storage.NodeID
	AnsweredByName string
	Age            time.Duration
}

// StoresHeard reports whether UsedBytes and FreeBytes say anything: they do not while no store was heard.
func (s Status) StoresHeard() bool { return s.StoresUnknown == 0 || s.UsedBytes > 0 || s.FreeBytes > 0 }

// StoreRoom says how far a store is from refusing new data. storagectl prints it to programs as it stands.
type StoreRoom struct {
	Node     storage.NodeID  `json:"node"`
	NodeName string          `json:"node_name"`
	Store    storage.StoreID `json:"store"`
	// FreeBytes is how much more may be written.
	FreeBytes int64 `json:"free_bytes"`
	// Fill and the rest are as in storage.StoreSpace.
	Fill         float64                 `json:"fill"`
	GarbageBytes int64                   `json:"garbage_bytes"`
	Compaction   storage.CompactionState `json:"compaction"`
}

// Health is one word for a cluster.
type Health string

// The degrees of health.
const (
	HealthOK Health = "ok"
	// HealthStarting: the cluster was never whole yet: its catalog or its groups are being made, and nothing is lost.
	HealthStarting Health = "starting"
	// HealthDegraded: everything is served, with less redundancy or room than wanted.
	HealthDegraded Health = "degraded"
	// HealthCritical: something is not served, or the next failure may lose data.
	HealthCritical Health = "critical"
)

// Reason is one thing that is not as it should be, in words for people. storagectl prints it to programs as it stands.
type Reason struct {
	Severity Health `json:"severity"`
	// Subject is the object: "node b", "group 3".
	Subject string `json:"subject"`
	// Text says what is the matter: "down for 3m20s".
	Text string `json:"text"`
	// NextStep says what to do about it; empty when there is nothing to do but wait.
	NextStep string `json:"next_step"`
}

// ObjectKind is what Explain is asked about.
type ObjectKind string

// The kinds of objects.
const (
	ObjectVolume ObjectKind = "volume"
	ObjectNode   ObjectKind = "node"
	ObjectGroup  ObjectKind = "group"
)

// Task is one replica on its way into its group. storagectl prints it to programs as it stands.
type Task struct {
	Kind  TaskKind        `json:"kind"`
	Group storage.GroupID `json:"group"`
	// Node is where the replica goes.
	Node     storage.NodeID `json:"node"`
	NodeName string         `json:"node_name"`
	// Step says what is being done now: "pulling", "catching up".
	Step     string    `json:"step"`
	Progress *Progress `json:"progress,omitempty"`
}

// TaskKind says why a replica is made.
type TaskKind string

// The kinds of tasks.
const (
	// TaskGrow: a group gets the replicas it is meant to have because nodes joined.
	TaskGrow TaskKind = "grow"
	// TaskRepair: a group gets a replica in the place of a lost one.
	TaskRepair TaskKind = "repair"
	// TaskBalance: a replica moves to spread the use.
	TaskBalance TaskKind = "balance"
)

// Version says what a node runs. storagectl prints it to programs as it stands.
type Version struct {
	Version string `json:"version"`
	// Commit is what it was built from; empty when the build did not say.
	Commit    string `json:"commit"`
	GoVersion string `json:"go_version"`
	// Platform is operating system and architecture: "linux/amd64".
	Platform string `json:"platform"`
}
