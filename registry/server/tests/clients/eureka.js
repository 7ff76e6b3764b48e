// eureka-js-client, unmodified: registers itself, lists what it finds, leaves when told to.
//
//   node eureka.js PORT
//
// Prints a line of JSON each time that what it sees of the app ORDERS changes, and "stopped" last.
'use strict';
const { Eureka } = require('eureka-js-client');

const client = new Eureka({
  instance: {
    app: 'js-app',
    instanceId: 'js-1',
    hostName: '127.0.0.1',
    ipAddr: '127.0.0.1',
    port: { $: 9091, '@enabled': 'true' },
    vipAddress: 'js-app',
    dataCenterInfo: {
      '@class': 'com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo',
      name: 'MyOwn',
    },
    metadata: { color: 'blue' },
  },
  eureka: {
    host: '127.0.0.1',
    port: Number(process.argv[2]),
    servicePath: '/eureka/v2/apps/',
    heartbeatInterval: 500,
    registryFetchInterval: 200,
    maxRetries: 1,
    filterUpInstances: false,
  },
});
client.logger.level(50);

let last = '';
const say = () => {
  const found = client
    .getInstancesByAppId('ORDERS')
    .map((one) => ({ id: one.instanceId, status: one.status, port: one.port.$ }));
  const line = JSON.stringify(found);
  if (line !== last) {
    last = line;
    console.log(line);
  }
};

client.start((error) => {
  if (error) {
    console.error(String(error));
    process.exit(1);
  }
  client.on('registryUpdated', say);
  say();
});
process.stdin.on('end', () => client.stop((error) => {
  console.log(error ? `failed: ${error}` : 'stopped');
  process.exit(error ? 1 : 0);
}));
process.stdin.resume();
