package op

// The numbers of the methods by which the leader of a group is asked over the peers (docs/format/peer.md).
const (
	MethodPropose       = 16 // an operation
	MethodRead          = 17 // blocks
	MethodStatus        = 18 // which blocks are mapped
	MethodMappedExtents = 19 // which extents of a volume hold anything
)
