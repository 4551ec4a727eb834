package csi

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// Keys of a StorageClass's parameters.
const (
	// parameterAccessibleFrom is "anywhere" (the default: every host reaches every volume) or "requested": only the zones
	// that the orchestrator asked for, so that a StorageClass can keep a volume's users near its replicas.
	parameterAccessibleFrom = "accessibleFrom"
	// parameterTakeOver is "true" when a publish to another host takes the volume away from the one before, for
	// orchestrators that publish without unpublishing what they gave up. It travels in the volume context.
	parameterTakeOver = "takeOver"
)

// foreignPrefix is that of the keys which the orchestrator's own helpers add.
const foreignPrefix = "csi.storage.k8s.io/"

// parameters are what a StorageClass says.
type parameters struct {
	requested bool
	takeOver  bool
}

// parseParameters refuses what it does not know: a key that is misspelled must not be passed over.
func parseParameters(m map[string]string) (p parameters, err error) {
	for key, value := range m {
		switch {
		case strings.HasPrefix(key, foreignPrefix):
		case key == parameterAccessibleFrom && slices.Contains([]string{"anywhere", "requested"}, value):
			p.requested = value == "requested"
		case key == parameterTakeOver && slices.Contains([]string{"true", "false"}, value):
			p.takeOver = value == "true"
		case key == parameterAccessibleFrom:
			return p, invalid(`parameter %s=%q: want "anywhere" or "requested"`, key, value)
		case key == parameterTakeOver:
			return p, invalid(`parameter %s=%q: want "true" or "false"`, key, value)
		default:
			return p, invalid("parameter %q is not known; there are %s and %s", key, parameterAccessibleFrom, parameterTakeOver)
		}
	}
	return p, nil
}

// context is what of the parameters a volume carries with it.
func (p parameters) context() map[string]string {
	if !p.takeOver {
		return nil
	}
	return map[string]string{parameterTakeOver: "true"}
}

// Keys of a VolumeAttributesClass's parameters: what of a volume can be changed while it is in use.
const (
	// mutableRequests and mutableBytes bound what all hosts of the volume together, through one gateway, may ask for per
	// second; 0 is no limit.
	mutableRequests = "requestsPerSecond"
	mutableBytes    = "bytesPerSecond"
)

// parseLimits reads mutable parameters. Nil means that they say nothing.
func parseLimits(m map[string]string) (*Limits, error) {
	if len(m) == 0 {
		return nil, nil
	}
	var l Limits
	for key, value := range m {
		n, err := strconv.ParseInt(value, 10, 64)
		switch {
		case key != mutableRequests && key != mutableBytes:
			return nil, invalid("mutable parameter %q is not known; there are %s and %s", key, mutableRequests, mutableBytes)
		case err != nil || n < 0 || n > math.MaxInt64/2:
			return nil, invalid("mutable parameter %s=%q: want a number, 0 for no limit", key, value)
		case key == mutableRequests:
			l.RequestsPerSecond = n
		default:
			l.BytesPerSecond = n
		}
	}
	return &l, nil
}
