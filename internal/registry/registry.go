// Package registry registers the metrics of one part of a process together, and takes them back, so that the part can be opened
// again in the same process. It knows nothing of what they measure. Functions may be called concurrently.
package registry

import "github.com/prometheus/client_golang/prometheus"

// Register registers collectors, all of them or none, and returns what takes them back. It does nothing without a registry.
func Register(r prometheus.Registerer, cs ...prometheus.Collector) (unregister func(), err error) {
	if r == nil {
		return func() {}, nil
	}
	unregister = func() {
		for _, c := range cs {
			r.Unregister(c)
		}
	}
	for i, c := range cs {
		if err := r.Register(c); err != nil {
			cs = cs[:i]
			unregister()
			return nil, err
		}
	}
	return unregister, nil
}
