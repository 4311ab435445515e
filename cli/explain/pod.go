package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// isHealthy reports whether a pod is ready, or has completed.
func isHealthy(pod *corev1.Pod) bool {
	if pod.Status.Phase == corev1.PodSucceeded {
		return true
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// isStarting reports whether a container waits with that reason for its volumes.
func isStarting(reason string) bool {
	return reason == "ContainerCreating" || reason == "PodInitializing"
}

// state returns the state of a pod in one word or two.
func state(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "Terminating"
	}
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := status.State.Waiting; w != nil && w.Reason != "PodInitializing" {
			return w.Reason
		}
	}
	if pod.Status.Reason != "" {
		return pod.Status.Reason
	}
	if pod.Status.Phase == corev1.PodRunning && !isHealthy(pod) {
		return "not ready"
	}
	return string(pod.Status.Phase)
}

// worst returns the pod to explain, of pods from the newest to the oldest: the first that is not
// healthy, else the first; nil for none.
func worst(all []corev1.Pod) *corev1.Pod {
	var found *corev1.Pod
	for i := range all {
		switch pod := &all[i]; {
		case pod.DeletionTimestamp != nil && len(all) > 1:
		case found == nil, isHealthy(found) && !isHealthy(pod):
			found = pod
		}
	}
	return found
}

// works reports whether the explained pod shows that every link works.
func (p *page) works() bool { return p.pod != nil && isHealthy(p.pod) }

// mounted reports whether the kubelet has mounted the volumes of the explained pod.
func (p *page) mounted() bool {
	for _, status := range slices.Concat(p.pod.Status.InitContainerStatuses, p.pod.Status.ContainerStatuses) {
		if w := status.State.Waiting; w == nil || !isStarting(w.Reason) {
			return true // a container starts only with all volumes
		}
	}
	names := driverVolumes(p.pod)
	return len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool {
		return p.statuses[name] == nil || !p.statuses[name].Status.Mounted
	})
}

// ofPod ends the title of a section about the explained pod, unless the pod is the target.
func (p *page) ofPod() string {
	if p.target.Kind == "Pod" {
		return ""
	}
	return " of pod " + p.pod.Name
}

// top returns the workload that the target belongs to, or the target.
func (p *page) top() pods.Owner {
	if len(p.owners) > 0 {
		return p.owners[len(p.owners)-1]
	}
	return pods.Owner{Kind: p.target.Kind, Name: p.target.Name}
}

// replace returns the words of the command that replaces the explained pod, or the pods of the
// target.
func (p *page) replace() []string {
	top := p.top()
	if kube.IsRestartable(top.Kind) {
		name := strings.ToLower(top.Kind) + "/" + top.Name
		return []string{"kubectl", "rollout", "restart", name, "--namespace", p.target.inNamespace()}
	}
	if p.pod == nil || top.Kind == "Pod" { // nothing creates it again
		return []string{"kubectl", "replace", "--force", "--filename", "FILE"}
	}
	return []string{"kubectl", "delete", "pod", p.pod.Name, "--namespace", p.pod.Namespace}
}

// writeTemplate writes what the pods of a workload get.
func (p *page) writeTemplate() {
	if p.target.Kind == "Pod" {
		return
	}
	s := p.report.Section("Pod template")
	p.writeResult(s, volumes)
	if len(p.result.AllErrors()) > 0 || p.result.NotOptedIn {
		return
	}
	if p.handover != nil && !p.handover.IsInherited() {
		s.Broken("it does not inherit the annotations of the %s: no injector was called for them", p.target.Kind).
			Run(p.replace()...)
	}
	status := p.effective()
	for _, v := range status.Volumes {
		s.OK("its pods get volume %s of class %s at %s", v.Name, v.Class, v.Path)
	}
	for _, e := range status.Env {
		if e.Object != "" {
			s.OK("its pods get env var %s from %s, by an env file", e.Name, e.Object)
			continue
		}
		s.OK("its pods get env var %s from key %s of Secret %s", e.Name, e.Key, e.Secret)
	}
}

// writeVolumes writes what the explained pod has, and what it would get now.
func (p *page) writeVolumes() {
	s := p.report.Section("%s%s", volumes, p.ofPod())
	result := &p.podResult
	if p.target.Kind == "Pod" && p.outdated == "" { // else it is in its own way
		p.writeResult(s, volumes)
	}
	switch {
	case p.outdated != "":
		state := report.Broken
		if isHealthy(p.pod) {
			state = report.Warning
		}
		s.Add(state, "what it requests changed after it was created: %s", p.outdated).Run(p.replace()...)
	case len(result.AllErrors()) > 0:
		if p.lacking() == nil && !p.lacksTenant() {
			s.Info("a new pod with its annotations would be rejected")
		}
	case result.Outcome == inject.NotRequested && p.pod.Labels[api.Injected] != "":
		s.Info("it was injected; a new pod would not be")
	case result.Outcome == inject.NotRequested:
		s.Info("it gets nothing from the injector")
	default:
		if lacking := lacks(p.pod, &result.Change); len(lacking) > 0 {
			p.writeLacking(s, lacking)
		}
	}
	status := statusOf(p.pod.Annotations)
	for _, v := range p.pod.Spec.Volumes {
		if v.CSI == nil || v.CSI.Driver != class.Driver {
			continue
		}
		by := "written by hand"
		if slices.ContainsFunc(status.Volumes, func(own inject.StatusVolume) bool { return own.Name == v.Name }) {
			by = "injected"
		}
		line := s.OK("volume %s mounts class %s (%s)", v.Name, v.CSI.VolumeAttributes[class.Attribute], by)
		for _, container := range slices.Concat(p.pod.Spec.InitContainers, p.pod.Spec.Containers) {
			for _, mount := range container.VolumeMounts {
				if mount.Name == v.Name {
					line.Detail("container %s: %s", container.Name, mount.MountPath)
				}
			}
		}
		if len(line.Details) == 0 {
			line.State = report.Warning
			line.Detail("no container mounts it, so the kubelet does not mount it either")
		}
	}
}

// lacks returns what a pod lacks of a change, in words. Annotations and the injector's own label do
// not count.
func lacks(pod *corev1.Pod, change *inject.Change) []string {
	var list []string
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	for _, label := range change.Labels {
		if label.Key != api.Injected {
			add("label %s=%s", label.Key, label.Value)
		}
	}
	if change.ServiceAccountName != "" {
		add("ServiceAccount %s", change.ServiceAccountName)
	}
	for _, v := range change.Volumes {
		add("volume %s of class %s", v.Name, v.Class)
	}
	for i := range change.Containers {
		c := &change.Containers[i]
		containers := pod.Spec.Containers
		if c.Init {
			containers = pod.Spec.InitContainers
		}
		name := containers[c.Index].Name
		for _, mount := range c.Mounts {
			add("mount %s in container %s", mount.Path, name)
		}
		for _, env := range c.Env {
			add("env var %s in container %s", env.Name, name)
		}
		for _, replaced := range c.Replace {
			add("env var %s in container %s", replaced.Var.Name, name)
		}
	}
	return list
}

// writeLacking writes what the explained pod lacks, and why.
func (p *page) writeLacking(s *report.Section, lacking []string) {
	created := p.pod.CreationTimestamp.Time
	why := "what it requests changed after it was created"
	if p.pod.Labels[api.Injected] == "" {
		why = "no injector was called when it was created"
		switch {
		case p.namespace != nil && writtenAt(p.namespace.ManagedFields, api.Injection).After(created):
			why = "it was created before the namespace opted in"
		case p.mutating != nil && p.mutating.Metadata.CreationTimestamp.After(created):
			why = "it was created before the injector was installed"
		case p.failsOpen():
			why = "no injector answered when it was created, and failurePolicy is Ignore"
		}
	}
	line := s.Broken("the pod does not have what it requests: %s", why)
	for _, what := range lacking {
		line.Detail("it lacks %s", what)
	}
	line.Run(p.replace()...)
}

// failsOpen reports whether the API server admits pods while no injector answers.
func (p *page) failsOpen() bool {
	return slices.ContainsFunc(p.entries(), func(e entry) bool {
		return !e.validating && e.FailsOpen()
	})
}

// writeDriver writes whether the driver and the provider run on the pod's node, and how.
func (p *page) writeDriver() {
	if len(driverVolumes(p.pod)) == 0 {
		return
	}
	node := p.pod.Spec.NodeName
	s := p.report.Section("Driver and provider%s", p.ofPod())
	switch denied := p.lacks(kube.CSIDrivers); {
	case denied != nil:
		missing(s, denied, p.mounted())
	case p.driver == nil:
		s.Broken("CSIDriver %s does not exist: the Secrets Store CSI driver is not installed", class.Driver).
			Run(installDriver...)
		return
	default:
		p.writeAudiences(s)
	}
	switch denied := p.lacks(kube.CSINodes); {
	case node == "":
		s.Info("the pod has no node yet")
		return
	case denied != nil:
		missing(s, denied, p.mounted())
	case !isRegistered(p.csiNode):
		s.Broken("the driver is not registered on node %s: it does not run there", node).Run(p.fill(podsOnNode, nil)...)
		return
	default:
		s.OK("the driver is registered on node %s", node)
	}
	p.writeNodePods(s, node)
}

// isRegistered reports whether the driver is registered with the kubelet of a node; nil for a node
// without drivers.
func isRegistered(node *storagev1.CSINode) bool {
	return node != nil && slices.ContainsFunc(node.Spec.Drivers, func(d storagev1.CSINodeDriver) bool {
		return d.Name == class.Driver
	})
}

// writeAudiences writes whether the kubelet passes the tokens that the pod's classes need.
func (p *page) writeAudiences(s *report.Section) {
	needed := map[string]string{} // by audience, the class
	for _, name := range driverVolumes(p.pod) {
		c := p.class(name)
		if c == nil || c.ClientID == "" || c.UsesPodIdentity || c.UsesNodeIdentity {
			continue
		}
		audience := api.TokenExchangeAudience
		if usesTokenProxy(p.classObject(name)) {
			audience = api.TokenProxyAudience
		}
		needed[audience] = name
	}
	var audiences []string
	for _, request := range p.driver.Spec.TokenRequests {
		audiences = append(audiences, request.Audience)
	}
	for _, audience := range slices.Sorted(maps.Keys(needed)) {
		name := needed[audience]
		if !slices.Contains(audiences, audience) {
			s.Broken("CSIDriver %s does not request tokens for %s, which class %s needs", class.Driver, audience, name).
				Run(addAudience(len(audiences), audience)...)
			return
		}
	}
	text := "no tokens"
	if len(audiences) > 0 {
		text = "tokens for " + strings.Join(audiences, ", ")
	}
	s.OK("CSIDriver %s is installed, and requests %s", class.Driver, text)
	if p.driver.Spec.RequiresRepublish == nil || !*p.driver.Spec.RequiresRepublish {
		s.Info("rotation is off: CSIDriver %s has no requiresRepublish", class.Driver)
	}
}

// addAudience returns the words of the command by which the driver requests one more audience.
func addAudience(index int, audience string) []string {
	return kube.HelmDriver(fmt.Sprintf("tokenRequests[%d].audience=%s", index, audience))
}

// writeNodePods writes the pods of the driver and the provider on a node, rotation and sync.
func (p *page) writeNodePods(s *report.Section, node string) {
	if p.nodePodsDenied != nil {
		missing(s, p.nodePodsDenied, p.mounted())
		return
	}
	hasDriver, hasProvider := false, false
	for i := range p.nodePods {
		pod, what := &p.nodePods[i], "the provider"
		driver := kube.Driver(&pod.Spec)
		if driver != nil {
			what = "the driver"
		}
		hasDriver, hasProvider = hasDriver || driver != nil, hasProvider || kube.Provider(&pod.Spec) != nil
		if isHealthy(pod) {
			s.OK("%s runs in pod %s/%s", what, pod.Namespace, pod.Name)
		} else {
			s.Broken("%s, pod %s/%s, is not ready: %s", what, pod.Namespace, pod.Name, state(pod)).
				Run("kubectl", "describe", "pod", pod.Name, "--namespace", pod.Namespace)
		}
		if driver == nil {
			continue
		}
		if rotates, ok := kube.Argument(driver, "enable-secret-rotation"); ok {
			interval, _ := kube.Argument(driver, "rotation-poll-interval")
			s.Info("rotation: --enable-secret-rotation=%s --rotation-poll-interval=%s", rotates, interval)
		} else {
			s.Info("rotation is off: the driver has no flag --enable-secret-rotation")
		}
	}
	switch {
	case hasDriver && !hasProvider && !p.mounted():
		s.Broken("the Azure provider does not run on node %s", node).Run(p.fill(podsOnNode, nil)...)
	case !hasDriver && !p.mounted():
		s.Info("no pod of the driver or the provider is known on node %s", node)
	}
	needs, missingOne := len(p.secrets) > 0, false
	for _, secret := range p.secrets {
		missingOne = missingOne || secret == nil
	}
	switch denied := p.lacks(kube.AccessReviews); {
	case p.syncs != nil && *p.syncs:
		s.OK("sync is on: the driver may write Secrets")
	case p.syncs != nil && missingOne:
		s.Broken("sync is off: the driver may not write the Secret of the env vars").Run(syncOn...)
	case p.syncs != nil && needs:
		s.Warning("sync is off: the Secret of the env vars exists, and is not updated").Run(syncOn...)
	case p.syncs != nil:
		s.Info("sync is off: the driver may not write Secrets")
	case denied != nil && needs:
		missing(s, denied, true) // the Secret itself shows it
	}
}

// writeMounted writes what the driver mounted, and which env vars are behind.
func (p *page) writeMounted() {
	names := driverVolumes(p.pod)
	if len(names) == 0 {
		return
	}
	s := p.report.Section("Mounted objects%s", p.ofPod())
	if denied := p.lacks(kube.PodStatuses); denied != nil {
		missing(s, denied, p.mounted())
	} else {
		for _, name := range names {
			p.writeStatus(s, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.secrets)) {
		p.writeSecret(s, name)
	}
}

func (p *page) writeStatus(s *report.Section, name string) {
	status := p.statuses[name]
	switch {
	case status == nil && p.mounted():
		s.Info("class %s: mounted; the driver has no status of it", name)
	case status == nil || !status.Status.Mounted:
		s.Unknown("class %s is not mounted", name)
	default:
		line := s.OK("class %s is mounted", name)
		for _, o := range status.Status.Objects {
			line.Detail("%s, version %s", o.ID, o.Version)
		}
		p.writeBehind(s, name, status)
	}
}

// writeBehind writes which env vars may be behind the mounted files. Once a pod has started, only
// new objects or versions change the status, and its managed fields have the time. An env var has
// the value of the time when its container started.
func (p *page) writeBehind(s *report.Section, name string, status *podStatus) {
	changed := status.CreationTimestamp.Time
	for _, entry := range status.ManagedFields {
		if entry.Time != nil && entry.Time.After(changed) {
			changed = entry.Time.Time
		}
	}
	synced := map[string]bool{name: class.IsManagedName(name)}
	if c := p.class(name); c != nil {
		for _, key := range c.Synced {
			synced[key.Secret] = true
		}
	}
	secrets := p.envSecrets()
	for _, container := range slices.Concat(p.pod.Status.InitContainerStatuses, p.pod.Status.ContainerStatuses) {
		running := container.State.Running
		if running == nil || !changed.After(running.StartedAt.Time) {
			continue
		}
		of := map[string][]string{"": p.fileEnvs(name, container.Name)}
		for secret, envs := range secrets {
			if synced[secret] {
				of[secret] = envs[container.Name]
			}
		}
		for _, secret := range slices.Sorted(maps.Keys(of)) {
			if envs := of[secret]; len(envs) > 0 {
				line := s.Warning("env vars of container %s may be behind: %s", container.Name, strings.Join(envs, ", ")).
					Detail("an object of class %s changed %s, and the container started %s", name,
						p.ago(changed), p.ago(running.StartedAt.Time))
				switch top := p.top(); {
				case p.request.OnRotation != api.RotationRestart:
				case kube.IsRestartable(top.Kind):
					line.Detail("annotation %s requests a restart of the %s, which the namespace's %s may delay",
						api.OnRotation, top.Kind, api.RestartWindow)
				case slices.Contains([]string{"Job", "CronJob", "Pod"}, top.Kind):
					line.Detail("annotation %s has no effect on a %s, which is never restarted", api.OnRotation, top.Kind)
				default:
					line.Detail("annotation %s restarts a %s only if workloads.extra in the injector's chart lists the kind",
						api.OnRotation, top.Kind)
				}
				line.Run(p.replace()...)
			}
		}
	}
}

// fileEnvs returns the env vars of a container from env files with objects of a class.
func (p *page) fileEnvs(name, container string) []string {
	var names []string
	for _, e := range inject.FileEnvs(&p.pod.Spec) {
		for _, v := range p.pod.Spec.Volumes {
			if e.Container == container && v.Name == e.Volume && v.CSI != nil && v.CSI.VolumeAttributes[class.Attribute] == name {
				names = append(names, e.Name)
			}
		}
	}
	return names
}

// writeSecret writes whether the Secret of env vars exists.
func (p *page) writeSecret(s *report.Section, name string) {
	var envs []string
	for container, names := range p.envSecrets()[name] {
		envs = append(envs, strings.Join(names, ", ")+" of container "+container)
	}
	slices.Sort(envs)
	switch secret, denied := p.secrets[name], p.lacks(kube.Secrets); {
	case denied != nil:
		missing(s, denied, p.works())
	case secret == nil && p.mounted():
		s.Broken("Secret %s does not exist: the driver does not sync it", name).
			Detail("%s", strings.Join(envs, "; ")).Run(syncOn...)
	case secret == nil:
		s.Info("Secret %s does not exist yet: the driver syncs it after the mount", name)
	case secret.Labels["secrets-store.csi.k8s.io/managed"] != "true":
		s.Warning("Secret %s was not created by the driver", name)
	default:
		s.OK("Secret %s exists", name).Detail("%s", strings.Join(envs, "; "))
	}
}

// writePolicy writes the verdict of policy about a new pod.
func (p *page) writePolicy() {
	if p.namespace == nil || p.subject.Pod == nil || !api.Governed(p.namespace.Labels) {
		return
	}
	s := p.report.Section("Policy")
	namespace := *facts.ReadNamespace(p.namespace)
	modes := policy.ModesOf(namespace, p.subjectAccount())
	switch {
	case len(p.result.AllErrors()) > 0:
		return // the pod is rejected before policy is checked
	case !policy.Enforces(namespace) && modes == (policy.Modes{}):
		return
	}
	if len(p.verdict.Violations) == 0 {
		s.OK("no rule is broken")
	}
	lacksRight := false
	for _, v := range p.verdict.Violations {
		state := report.Info
		switch level := v.Rule.Level; {
		case level == policy.Off && policy.Enforces(namespace), level != policy.Off && modes.Enforce.AtLeast(level):
			state = report.Broken
		case level == policy.Off, modes.Warn.AtLeast(level):
			state = report.Warning
		}
		if denied := p.lacking(); denied != nil && !v.Rule.Alone { // what seems to be missing may exist
			if !lacksRight {
				missing(s, denied, state != report.Broken)
			}
			lacksRight = true
			continue
		}
		line := s.Add(state, "rule %s: %s", v.Rule.Name, api.Message(v.Err))
		line.Detail("%s", plain(v.Rule.Fix, func(string) string { return "" }))
	}
}

// maxPods is how many pods a page lists.
const maxPods = 20

// writePods writes the state of the target's pods.
func (p *page) writePods() {
	s := p.report.Section("Pods")
	if denied := p.lacks(kube.Pods); denied != nil {
		missing(s, denied, false)
		return
	}
	if p.object != nil && lacksPods(p.object) {
		has, wants := podsOf(p.object)
		of := ""
		if p.target.Kind == "Deployment" {
			of = " of its current template"
		}
		s.Warning("it has %d of %d pods%s", has, wants, of)
	}
	for i := range p.pods[:min(len(p.pods), maxPods)] {
		pod := &p.pods[i]
		state, text := report.OK, state(pod)
		if !isHealthy(pod) { // the sections below say why
			state = report.Warning
		}
		injected := ""
		if pod.Labels[api.Injected] == "" {
			injected = ", not injected"
		}
		s.Add(state, "%s: %s, created %s%s", pod.Name, text, p.ago(pod.CreationTimestamp.Time), injected)
	}
	if more := len(p.pods) - maxPods; more > 0 {
		s.Info("and %d more", more)
	}
}
