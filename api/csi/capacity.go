package csi

import (
	"math"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/hostfs"
	"github.com/storaged/storaged/internal/copies"
)

// defaultVolumeBytes is the size of a volume when the orchestrator does not say one.
const defaultVolumeBytes = 1 << 30

// chooseSize returns the smallest size that a volume can have within the range and for the uses; preferred is taken when
// the range leaves it open. The error's code is OUT_OF_RANGE or INVALID_ARGUMENT.
func chooseSize(r *spec.CapacityRange, uses []use, preferredBytes int64) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if required < 0 || limit < 0 {
		return 0, invalid("capacity_range has a negative size")
	}
	if limit == 0 {
		limit = math.MaxInt64
	}
	if required > limit {
		return 0, invalid("capacity_range requires %d bytes and limits them to %d", required, limit)
	}
	limit = min(limit, storage.MaxVolumeBytes)
	if required > limit {
		return 0, refuse(codes.OutOfRange, "%d bytes are required; a volume has at most %d", required, limit)
	}
	least := max(required, storage.MinVolumeBytes)
	for _, u := range uses {
		if !u.block {
			least = max(least, hostfs.MinBytes(u.fsType))
		}
	}
	least = (least + storage.BlockSize - 1) / storage.BlockSize * storage.BlockSize
	limit = limit / storage.BlockSize * storage.BlockSize
	if least > limit {
		return 0, refuse(codes.OutOfRange, "no volume fits: at least %d bytes are needed, at most %d are allowed", least, limit)
	}
	if required == 0 {
		return max(least, min(preferredBytes, limit)), nil
	}
	return least, nil
}

// inRange reports whether a volume that exists has a size that the range allows.
func inRange(r *spec.CapacityRange, sizeBytes int64) bool {
	return sizeBytes >= r.GetRequiredBytes() && (r.GetLimitBytes() == 0 || sizeBytes <= r.GetLimitBytes())
}

// takes returns how much more may be written to the stores of a node that refuse nothing.
func takes(n api.Node) (bytes int64) {
	for _, s := range n.Stores {
		if s.State == api.StoreOK {
			bytes += s.FreeBytes
		}
	}
	return bytes
}

// availableBytes is how much more data the nodes can take with that many copies of everything, each on another node.
func availableBytes(nodes []api.Node, wanted int) int64 {
	var free []int64
	for _, n := range nodes {
		if n.State == storage.NodeUp {
			free = append(free, takes(n))
		}
	}
	return copies.Fit(free, wanted)
}
