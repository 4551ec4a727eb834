package replication

// The numbers of the methods by which replicas speak with one another (docs/format/peer.md). The lane in brackets is the one that
// they use.
const (
	methodReadCopy = 20 // one block as this replica has it, whoever leads: for a member who cannot read its own (Data)

	methodManifest = 32 // open or renew a manifest for a pull (Bulk)
	methodTable    = 33 // extent tables of a manifest (Bulk)
	methodBlocks   = 34 // blocks of a manifest (Bulk)
)
