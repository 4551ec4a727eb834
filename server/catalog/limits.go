package catalog

import "time"

// Version is the newest version of commands and snapshots that this binary knows. Each is written under the lowest
// version that can say it.
//
//	2  limits of volumes
//	3  which configuration a replica's role was taken from
//	4  attachments for readers only; limits of what is provisioned
//	5  labels of volumes
//	6  the version in force is raised by a command; stores of format 2
//	7  stores of format 3
//	8  what people want of a node (drain, maintenance), and since when it has been silent
//	9  a replica that was to leave, and stays; commands with the time at which they were proposed, and events
const Version = 9

// BaseVersion is the newest version that may be used in a cluster that has never raised its own. All builds that run in such
// clusters know it. What came later is refused until Cluster.Version says that every node knows it.
const BaseVersion = 3

// unruledVersion is the newest version of builds that know no version in force. They apply all that they know, and so must others.
const unruledVersion = 5

// StoreFormat returns the format of stores that came with a version of the cluster or before.
func StoreFormat(version int) int {
	switch {
	case version >= 7:
		return 3
	case version >= 6:
		return 2
	}
	return 1
}

// Limits of the catalog. Commands beyond them are refused with KindInvalid, or KindNoSpace when a table is full.
const (
	// MaxCommandBytes bounds one encoded command.
	MaxCommandBytes = 64 << 10
	// MaxSnapshotBytes bounds one encoded snapshot; the tables below keep it far away.
	MaxSnapshotBytes = 1 << 30

	// MaxProvisionPercent bounds how much larger than the stores volumes together may be.
	MaxProvisionPercent = 100_000

	// MaxNodes counts nodes, removed ones included: their ids are kept.
	MaxNodes = 4096
	// MaxStoresPerNode bounds the data directories of one node.
	MaxStoresPerNode = 64
	// MaxGroups bounds the data groups of a cluster.
	MaxGroups = 4096
	// MaxReplicasPerGroup bounds the replicas of a group in all roles.
	MaxReplicasPerGroup = 9
	// MaxReplicasWanted bounds Cluster.Replicas.
	MaxReplicasWanted = 7
	// MaxVolumes bounds the volumes of a cluster, those being deleted included.
	MaxVolumes = 100_000
	// MaxVolumeGroups bounds the stripes of one volume; a power of two.
	MaxVolumeGroups = 64
	// StripeBytes is the size up to which a volume lives in one group; see StripeGroups.
	StripeBytes = 64 << 30
	// MaxSessions bounds the sessions of a cluster.
	MaxSessions = 200_000
	// MaxSessionsPerVolume bounds the sessions of one volume, and with it the windows a group keeps.
	MaxSessionsPerVolume = 256
	// MaxSessionsPerCommand bounds the list of ExpireSessions.
	MaxSessionsPerCommand = 1024

	// MaxAttachments bounds the attachments of a cluster.
	MaxAttachments = 200_000
	// MaxAttachmentsPerVolume bounds those of one volume.
	MaxAttachmentsPerVolume = 256
	// MaxNameBytes bounds the name of a node, a zone, and a holder's host.
	MaxNameBytes = 63
	// MaxAddrBytes bounds one address.
	MaxAddrBytes = 263
	// MaxRequestIDBytes bounds the request id of CreateVolume.
	MaxRequestIDBytes = 128
	// MaxInstanceBytes bounds the instance id of a gateway.
	MaxInstanceBytes = 64
	// MaxFromBytes bounds what is said of where a gateway is, for people.
	MaxFromBytes = 256
)

// Defaults of InitCluster.
const (
	// MaxMaintenance bounds how long a maintenance lasts: it ends by itself.
	MaxMaintenance = 30 * 24 * time.Hour

	// DefaultReplicas is the number of replicas of a group once there are nodes enough.
	DefaultReplicas = 3
	// DefaultGroups is the number of groups of a new cluster.
	DefaultGroups = 8
	// DefaultHeartbeatTimeout is the cluster's one heartbeat timeout; leases build on it.
	DefaultHeartbeatTimeout = 500 * time.Millisecond
	// MinHeartbeatTimeout and MaxHeartbeatTimeout bound the heartbeat timeout.
	MinHeartbeatTimeout = 50 * time.Millisecond
	MaxHeartbeatTimeout = 30 * time.Second
)
