package check

import (
	"cmp"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/class"
)

// vaultLimit is how many transactions a minute Key Vault allows for the secrets of one vault: 4,000
// in 10 s. A subscription has five times the limit of a vault, for all of its vaults of a region
// (https://learn.microsoft.com/azure/key-vault/general/service-limits).
const vaultLimit = 4000 * 6

// load is what the pods of all namespaces read of one vault.
type load struct {
	volumes int // a pod has one for each class
	// requests is the number of requests to read everything once.
	requests int
}

// perMinute returns the number of requests in a minute.
func (l *load) perMinute() int { return int(class.RequestsPerMinute(l.requests)) }

// addLoad counts a mounted class.
func (v *survey) addLoad(c *class.Class) {
	if c.Provider != class.Provider || c.Vault == "" {
		return
	}
	vault := strings.ToLower(c.Vault) // a part of a host name
	if v.vaults[vault] == nil {
		v.vaults[vault] = &load{}
	}
	types := map[string]bool{}
	for _, object := range c.Objects {
		types[object.Type] = true
	}
	v.vaults[vault].volumes++
	v.vaults[vault].requests += len(c.Objects) + len(types)
}

// writeVaults adds the estimated requests of each vault, the busiest first.
func (v *survey) writeVaults(c *cluster, s *report.Section) {
	on, _, err := c.rotation()
	if len(v.vaults) == 0 {
		return
	}
	if err == nil && !on {
		s.Info("rotation is off: pods read %s only when they start", report.Count(len(v.vaults), "vault"))
		return
	}
	condition := ""
	if err != nil {
		condition = ", if rotation is on"
	}
	vaults := sortedKeys(v.vaults)
	slices.SortStableFunc(vaults, func(a, b string) int {
		return cmp.Compare(v.vaults[b].requests, v.vaults[a].requests)
	})
	for _, vault := range vaults[:min(len(vaults), maxLines)] {
		load := v.vaults[vault]
		state, near := report.OK, ""
		if load.perMinute() >= vaultLimit/2 {
			state = report.Warning
			near = "; Key Vault throttles a vault at 24,000 (4,000 in 10 s): mount fewer objects, or use more vaults"
		}
		line := s.Add(state, "vault %s: about %d requests a minute from %s%s%s",
			vault, load.perMinute(), report.Count(load.volumes, "volume"), condition, near)
		if state == report.Warning {
			line.Run(c.command("list", "--all-namespaces", "--output", "csv")...)
		}
	}
	if len(vaults) > maxLines {
		s.Info("and %d more vaults with fewer requests", len(vaults)-maxLines)
	}
}
